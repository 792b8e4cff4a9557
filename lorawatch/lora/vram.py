"""What a LoRA run needs of a card's memory: arithmetic on a model's modules and on the numbers of a configuration.

Nothing is measured and nothing is loaded. Each part is a function with its formula and its source; the counts of what
autograd keeps follow the forward passes of transformers 5 and of PEFT 0.21, and tests hold them against torch's own
account (``torch.autograd.graph.saved_tensors_hooks``). All sizes are in bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lorawatch.lora.targets import is_attention, is_head
from lorawatch.records import ModelTree, ModuleGroup

Dtype = Literal["float32", "bfloat16", "float16"]
BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

CONTEXT = (0.5 * 2**30, 0.9 * 2**30, 2.0 * 2**30)
"""Least, usual and most that CUDA's context, cuBLAS and the driver take, which torch's allocator does not show.
Stas Bekman's ml-engineering has 0.9 to 1.78 GB for an A100."""
BAND = 0.20
"""Relative error of what a step needs by formula: a judgement between the 15 and 25 % of rule catalogue section 3. On a
processor the formulas are nearer to torch's account; nothing was measured on a card."""
LOOSE_BAND = 0.35
"""The same where a part of the model is only guessed: mixtures of experts, unknown layers."""
MEASURED_BAND = 0.05
"""Relative error after one measured step."""
FRAGMENTATION = 0.06
"""Of what is in tensors: how much more torch's allocator holds, at the upper end of the band. A judgement."""
CARDS: Mapping[int, float] = {16: 15.0 * 2**30, 24: 22.5 * 2**30, 40: 39.4 * 2**30, 80: 79.2 * 2**30}
"""Nominal size to the least that a card of that size has: T4, L4 and A10G, A100 40 GB, A100 and H100 80 GB, as
``nvidia-smi`` shows them."""

_OUTPUTS = frozenset({"o_proj", "out_proj", "out_lin", "c_proj", "dense", "wo", "o", "to_out", "proj", "fc_out"})
"""Last names of the layer that ends attention."""
_OTHER_SENSES = re.compile(r"(?:^|[._])(?:vision|visual|audio|image)(?:[._]|$)")
"""Names of parts that do not see the text."""
_PYTHON_GELU = frozenset({"gelu_new", "gelu_fast", "gelu_python", "quick_gelu", "relu2"})
"""Activations that transformers computes in steps, each of which keeps a tensor (``transformers.activations``)."""


class NoEstimateError(ValueError):
    """The modules or numbers that an estimate needs are missing: one line says which."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What of a configuration sets the memory.

    Attributes:
        batch: Rows of a micro-batch.
        length: Tokens of its longest row.
        dtype: Type in which the base's weights are held.
        autocast: Whether the passes run under autocast to 16 bits (``bf16`` or ``fp16`` of ``TrainingArguments``).
        adapter_dtype: Type of the trained weights. PEFT makes float32 of it; TRL bfloat16 for a quantised base.
        bits: 4 or 8 for a quantised base, 16 for none.
        double_quant: Whether the constants of 4-bit weights are quantised too.
        checkpointing: Whether only the inputs of layers are kept, and the rest is computed again.
        dropout: ``lora_dropout``.
        optim: Name of the optimizer, as ``TrainingArguments`` spell it.
        whole_logits: Whether the logits of a micro-batch are whole in memory; False for Liger's fused loss and for
            TRL's SFTTrainer from 1.16 on.
        attention: ``flash`` or ``sdpa``, which keep no matrix of scores, or ``eager``.
        copies: Forward passes whose activations are alive at once: 2 for a preference pair, else 1.
    """

    batch: int = 1
    length: int = 1024
    dtype: Dtype = "bfloat16"
    autocast: bool = True
    adapter_dtype: Dtype = "float32"
    bits: int = 16
    double_quant: bool = False
    checkpointing: bool = False
    dropout: float = 0.0
    optim: str = "adamw_torch_fused"
    whole_logits: bool = True
    attention: str = "sdpa"
    copies: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch, padding included."""
        return self.batch * self.length * self.copies

    @property
    def compute(self) -> int:
        """Bytes of a number in the passes."""
        return 2 if self.autocast else BYTES[self.dtype]

    @property
    def residual(self) -> int:
        """Bytes of a number of the hidden states between layers: those of the embedding, which autocast leaves."""
        return BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Widths:
    """How wide the parts of one layer are, as means over all layers, in numbers a token.

    Attributes:
        hidden: Width of the hidden states.
        layers: Layers.
        vocabulary: Rows of the output head.
        heads: Heads of attention; 0 where that is not known.
        query: Outputs of the query, as the output layer of attention takes them.
        key_value: Outputs of key and value together.
        norms: Inputs of the norms.
        mlp: What the activation function and the product with its gate keep.
        inner: The widest input of a layer's linear modules.
        linear: Inputs and outputs of the linear modules: what is alive of them at once is less.
        adapted_inputs: Inputs of the adapted modules, each counted.
        distinct_inputs: The same, an input that several modules share counted once, and the output of attention, which
            is kept anyway, not at all.
        ranks: Ranks of the adapted modules, added up.
        weights: Parameters of the linear modules of a layer.
        largest_weight: Parameters of the largest of them.
        guessed: What of it is a guess, for a person; "" when nothing is.
    """

    hidden: int
    layers: int
    vocabulary: int
    heads: int = 0
    query: float = 0.0
    key_value: float = 0.0
    norms: float = 0.0
    mlp: float = 0.0
    inner: float = 0.0
    adapted_inputs: float = 0.0
    distinct_inputs: float = 0.0
    ranks: float = 0.0
    weights: float = 0.0
    largest_weight: float = 0.0
    guessed: str = ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run is expected to need, in bytes.

    Attributes:
        parts: Name of a part to its bytes, in the order to show them. ``activations``, ``logits`` and ``workspace`` are
            those of the moment at which their sum is largest.
        peak: The most in tensors at once: torch's ``max_memory_allocated``.
        total: With CUDA's context: what the card shows.
        low: Lower end of the band of ``total``.
        high: Upper end of it.
        error: Relative error of what a step needs.
        calibrated: Whether it was scaled to a measurement.
        note: What of it is a guess; "" when nothing is.
    """

    parts: Mapping[str, float]
    peak: float
    total: float
    low: float
    high: float
    error: float = BAND
    calibrated: bool = False
    note: str = ""

    @property
    def step(self) -> float:
        """What a step needs on top of what stays."""
        return sum(self.parts[name] for name in STEP_PARTS)

    def fits(self, card: float) -> Literal["yes", "tight", "no"]:
        """Whether it fits on a card with so many bytes: ``tight`` where only a part of the band does."""
        return "yes" if self.high <= card else "no" if self.total > card else "tight"


STEP_PARTS = ("activations", "logits", "workspace")


def widths_of(tree: ModelTree, numbers: Mapping[str, Any], rank: float = 0.0) -> Widths:
    """The widths of a model's layers.

    Args:
        tree: Its modules.
        numbers: Numbers of its configuration: ``num_attention_heads``, ``hidden_act``, ``num_experts_per_tok``,
            ``moe_intermediate_size``, ``intermediate_size``, ``hidden_size``.
        rank: Rank of the adapter.

    Raises:
        NoEstimateError: The tree has no layers with linear modules, or no width.
    """
    embedding = next((one for one in tree.groups if one.kind == "embedding" and one.outputs), None)
    hidden = _count(numbers, "hidden_size", "n_embd", "d_model") or (embedding.outputs if embedding else 0)
    layers = tree.layers
    repeated = [group for group in tree.groups if "*" in group.name.split(".")]
    text = [group for group in repeated if not _OTHER_SENSES.search(group.name)]
    other_senses = len(text) < len(repeated)
    repeated = text or repeated
    linear = [group for group in repeated if group.kind == "linear" and group.inputs and not is_head(group.name)]
    if not hidden or not layers or not linear:
        missing = "hidden_size" if not hidden else "number of layers" if not layers else "widths of the linear layers"
        raise NoEstimateError(f"the model's {missing} cannot be told")
    attention = [group for group in linear if is_attention(group.name)]
    ends = [group for group in attention if group.name.rsplit(".", 1)[-1] in _OUTPUTS]
    starts = [group for group in attention if group not in ends]
    query = sum(group.inputs * group.count / layers for group in ends)
    produced = sum(group.outputs * group.count / layers for group in starts)
    others = [group for group in linear if group not in attention]
    experts = [one for one in repeated if one.kind == "experts"]
    mlp, guessed = _mlp(others, experts, hidden=hidden, layers=layers, numbers=numbers)
    adapted = [group for group in linear if group.adapted]
    if other_senses and text:
        guessed = "; ".join(filter(None, (guessed, "what images or sound take is not in it")))
    heads = next((one for one in tree.groups if is_head(one.name)), None)
    vocabulary = heads.outputs if heads is not None and heads.outputs else embedding.inputs if embedding else 0
    return Widths(
        hidden=hidden, layers=layers, vocabulary=vocabulary or _count(numbers, "vocab_size"),
        heads=_count(numbers, "num_attention_heads", "n_head"), query=query or float(hidden),
        key_value=max(produced - query, 0.0), mlp=mlp,
        norms=_norms(repeated, hidden=hidden, layers=layers, query=query, produced=produced),
        inner=max(max(group.inputs, group.outputs) for group in linear),
        adapted_inputs=sum(group.inputs * (group.adapted or 0) / layers for group in adapted),
        distinct_inputs=_distinct([one for one in adapted if one not in ends], layers),
        ranks=sum(rank * (group.adapted or 0) / layers for group in adapted),
        weights=sum(group.inputs * group.outputs * group.count / layers for group in linear),
        largest_weight=max(group.inputs * group.outputs for group in linear), guessed=guessed,
    )  # fmt: skip


def _mlp(
    dense: list[ModuleGroup], experts: list[ModuleGroup], *, hidden: int, layers: int, numbers: Mapping[str, Any]
) -> tuple[float, str]:
    """Numbers a token that an MLP keeps for its activation and its gate, and what of it is a guess.

    With a gate: input and output of the activation, and the gate's partner, 3 times the intermediate width; without,
    the input of the activation; of an activation that is computed in steps, 4 tensors.
    """
    up = sum(group.outputs * group.count / layers for group in dense if group.inputs == hidden)
    down = sum(group.inputs * group.count / layers for group in dense if group.inputs != hidden)
    if dense and not down:  # a square one
        down = up
    gated = up > 1.5 * down
    act = str(numbers.get("hidden_act") or numbers.get("activation_function") or numbers.get("hidden_activation") or "")
    kept = up + (up - down if gated else 0.0)
    if act in _PYTHON_GELU:
        kept += 3 * down
    if not experts:
        return kept, ""
    chosen = _count(numbers, "num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts") or 2
    width = _count(numbers, "moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size")
    blocks = max(group.count for group in experts) / layers
    return kept + blocks * chosen * (3 * width + 2 * hidden), "its experts: how many tokens go to which is not known"


def _norms(repeated: list[ModuleGroup], *, hidden: int, layers: int, query: float, produced: float) -> float:
    total = 0.0
    for group in repeated:
        if group.kind != "norm":
            continue
        last = group.name.rsplit(".", 1)[-1]
        if group.parameters in (hidden, 2 * hidden):
            width = float(hidden)
        elif last.startswith(("q_", "query")):  # one head's norm, put on each head
            width = query
        elif last.startswith(("k_", "key")):
            width = max(produced - query, 0.0) / 2
        else:
            width = float(group.parameters)
        total += width * group.count / layers
    return total


def _distinct(adapted: list[ModuleGroup], layers: int) -> float:
    """Inputs of the adapted modules where those of one block with one width share theirs."""
    shared: dict[tuple[str, int], float] = {}
    for group in adapted:
        key = (group.name.rsplit(".", 1)[0], group.inputs)
        shared[key] = max(shared.get(key, 0.0), group.inputs * (group.adapted or 0) / layers)
    return sum(shared.values())


def _count(numbers: Mapping[str, Any], *names: str) -> int:
    """The first of these numbers that is a whole one above zero; 0 where none is."""
    for name in names:
        value = numbers.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < 1e9:
            return int(value)
    return 0


# ---- what stays


def weight_bytes(tree: ModelTree, settings: Settings) -> float:
    """The base's weights.

    16 bits or 32: 2 or 4 B a parameter. 4-bit: half a byte a parameter of the linear layers, and their constants, a
    float32 for each block of 64 (0.0625 B), or with double quantisation a byte for each and a float32 for 256 of them
    (0.0159 B): QLoRA, arXiv 2305.14314, section 3. 8-bit: 1 B. The output head, embeddings and norms are not quantised
    (``bitsandbytes`` integration of transformers).
    """
    each = BYTES[settings.dtype]
    if settings.bits == 16:
        return float(each * tree.parameters)
    packed = sum(
        group.inputs * group.outputs * group.count
        for group in tree.groups
        if group.kind == "linear" and not is_head(group.name) and not group.tied
    )
    if settings.bits == 8:
        return packed + each * float(tree.parameters - packed)
    constants = (1 + 4 / 256) / 64 if settings.double_quant else 4 / 64
    return packed * (0.5 + constants) + each * float(tree.parameters - packed)


def adapter_bytes(trainable: float, settings: Settings) -> float:
    """The trained weights, in their own type."""
    return trainable * BYTES[settings.adapter_dtype]


def gradient_bytes(trainable: float, settings: Settings) -> float:
    """Their gradients, of the same type; kept from micro-batch to micro-batch."""
    return trainable * BYTES[settings.adapter_dtype]


def optimizer_bytes(trainable: float, settings: Settings) -> float:
    """The optimizer's state.

    Adam keeps two moments in the type of the weights (``torch.optim.AdamW``); 8-bit Adam two bytes, and a float32 for
    each block of 256 (bitsandbytes); Lion one moment; plain SGD and Adafactor next to nothing.
    """
    name = settings.optim.lower()
    each = float(BYTES[settings.adapter_dtype])
    moments = 2.0
    if name.startswith(("sgd", "adafactor", "apollo", "galore")):
        moments = 0.0
    elif "lion" in name or name.startswith(("adagrad", "rmsprop")):
        moments = 1.0
    if "8bit" in name:
        return trainable * moments * (1 + 4 / 256)
    if "4bit" in name:
        return trainable * moments * (0.5 + 4 / 128)
    return trainable * moments * each


# ---- what a step needs


def layer_activations(widths: Widths, settings: Settings) -> float:
    """What autograd keeps of one layer without checkpointing.

    The base is frozen: its linear layers keep nothing of their inputs. What is kept, a token, with c bytes a number in
    the passes (2 in 16 bits):

    - norms: a float32 copy of their input (``LlamaRMSNorm`` computes in float32);
    - attention: query, key, value and output (``scaled_dot_product_attention``), key and value repeated to the heads of
      the query as transformers does under a mask, the mask, and the log-sum of each head; eager: two matrices of scores
      a head in place of the mask;
    - MLP: see :func:`widths_of`;
    - each adapted module: the input of A, since A's gradient needs it. Where A has another type than the input, each
      module makes its own copy; else those that share an input share it. With dropout each has its own, and a mask of
      1 B a number. And r numbers for B.
    """
    tokens, c = settings.tokens, settings.compute
    kept = 4 * widths.norms + c * widths.mlp
    kept += c * (2 * widths.query + max(widths.key_value, 2 * widths.query)) + 4 * widths.heads
    kept += tokens_of_adapters(widths, settings)
    total = tokens * kept
    squares = float(settings.batch * settings.copies * settings.length**2)
    if settings.attention == "eager":
        total += squares * widths.heads * (4 + c)
    elif settings.attention == "sdpa":
        total += squares * c
    return total + _weight_copies(widths.weights, settings)


def tokens_of_adapters(widths: Widths, settings: Settings) -> float:
    """What the adapters of a layer keep a token."""
    a_bytes = settings.compute if settings.autocast else BYTES[settings.adapter_dtype]
    own_type = BYTES[settings.adapter_dtype] == settings.compute
    if settings.dropout > 0:
        return (a_bytes + 1) * widths.adapted_inputs + a_bytes * widths.ranks
    return a_bytes * (widths.distinct_inputs if own_type else widths.adapted_inputs) + a_bytes * widths.ranks


def _weight_copies(weights: float, settings: Settings) -> float:
    """Under autocast a float32 weight is cast at each use, and the copy is kept for the backward pass."""
    return 2 * weights if settings.autocast and settings.dtype == "float32" and settings.bits == 16 else 0.0


def activation_bytes(widths: Widths, settings: Settings) -> float:
    """What is kept of all layers at the end of the forward pass.

    With checkpointing the inputs of the layers alone: layers · tokens · width · bytes of the hidden states
    (Chen et al., arXiv 1604.06174).
    """
    last = 4 * settings.tokens * widths.hidden  # the last norm
    if settings.checkpointing:
        return last + widths.layers * settings.tokens * widths.hidden * settings.residual
    return last + widths.layers * layer_activations(widths, settings)


CHUNK = 4096
"""Tokens of a tile of TRL's chunked loss (``trl.kernels.chunked_logprob``, 1.16)."""
VOCABULARY_CHUNK = 32768
"""Words of such a tile (``trl.trainer.utils``, 1.16)."""


def logits_bytes(widths: Widths, settings: Settings) -> float:
    """What the loss needs at most.

    Whole logits: 12 B an element at the start of the backward pass: the log-softmax in float32 that was kept, its
    gradient, and the logits' gradient (``F.cross_entropy`` on ``logits.float()``, transformers' ``ForCausalLMLoss``).
    Chunked: one tile of 16 bits, and the hidden states' gradient in float32.
    """
    if settings.whole_logits:
        head = _weight_copies(float(widths.vocabulary * widths.hidden), settings)
        return 12.0 * settings.tokens * widths.vocabulary + head
    tile = min(settings.tokens, CHUNK) * min(widths.vocabulary, VOCABULARY_CHUNK) * 2
    return tile + 6.0 * settings.tokens * widths.hidden


def workspace_bytes(widths: Widths, settings: Settings) -> float:
    """What the passes of one layer need besides: casts and gradients of its widest tensors, weights made 16-bit again.

    Three tensors of the inner width in the type of the passes, and one and a half more where autocast meets a float32
    adapter, whose input is cast to and fro: read off torch's account of Llama layers of 8B (2.8 and 4.4), not derived.
    """
    casts = 1.5 if settings.autocast and settings.adapter_dtype == "float32" else 0.0
    space = (3.0 + casts) * settings.tokens * widths.inner * settings.compute
    if settings.bits != 16:
        space += 2 * widths.largest_weight
    return space


def estimate(tree: ModelTree, widths: Widths, settings: Settings, trainable: float | None = None) -> Estimate:
    """The peak of a run, with its band.

    The peak is at the loss, with all that was kept and the logits, or in the backward pass of a layer, which
    checkpointing has to compute again first.

    Args:
        tree: The model's modules.
        widths: Of its layers.
        settings: What of the configuration counts.
        trainable: Parameters that are trained; those of the tree where None.

    Raises:
        NoEstimateError: It is not known how many parameters are trained.
    """
    trained = tree.trainable if trainable is None else trainable
    if trained is None:
        raise NoEstimateError("the number of trained parameters is not known")
    parts: dict[str, float] = {
        "weights": weight_bytes(tree, settings),
        "adapter": adapter_bytes(trained, settings),
        "gradients": gradient_bytes(trained, settings),
        "optimizer": optimizer_bytes(trained, settings),
    }
    kept, work = activation_bytes(widths, settings), workspace_bytes(widths, settings)
    logits = logits_bytes(widths, settings)
    live = layer_activations(widths, settings) if settings.checkpointing else 0.0
    if logits >= live + work:
        parts |= {"activations": kept, "logits": logits, "workspace": 0.0}
    else:
        parts |= {"activations": kept + live, "logits": 0.0, "workspace": work}
    return _banded(parts, LOOSE_BAND if widths.guessed else BAND, widths.guessed)


def _banded(parts: Mapping[str, float], error: float, note: str = "", *, calibrated: bool = False) -> Estimate:
    peak = sum(parts.values())
    step = sum(parts[name] for name in STEP_PARTS)
    stays = peak - step
    least, usual, most = CONTEXT
    return Estimate(
        parts=dict(parts), peak=peak, total=peak + usual, low=stays + (1 - error) * step + least,
        high=(stays + (1 + error) * step) * (1 + FRAGMENTATION) + most, error=error, calibrated=calibrated, note=note,
    )  # fmt: skip


def calibrate(found: Estimate, measured: float) -> Estimate:
    """The estimate scaled to the peak of one measured step; its band narrows to :data:`MEASURED_BAND`.

    What stays is exact by formula; so what a step needs takes up the whole difference.

    Args:
        found: The estimate for the settings that were measured.
        measured: Torch's ``max_memory_allocated`` after an optimizer step, in bytes.

    Raises:
        NoEstimateError: The measurement is below what must stay: it is of other settings, or of no whole step.
    """
    factor = scale_of(found, measured)
    parts = {name: size * factor if name in STEP_PARTS else size for name, size in found.parts.items()}
    return _banded(parts, MEASURED_BAND, found.note, calibrated=True)


def scale_of(found: Estimate, measured: float) -> float:
    """By what a step's need has to be multiplied to meet a measurement; good for other settings of the same run too.

    Raises:
        NoEstimateError: The measurement is below what must stay.
    """
    stays = found.peak - found.step
    if not math.isfinite(measured) or measured <= stays or found.step <= 0:
        raise NoEstimateError(
            f"a measured peak of {measured / 2**30:.3g} GiB is less than weights and optimizer take by themselves "
            f"({stays / 2**30:.3g} GiB): it is of other settings, or of no whole step"
        )
    return (measured - stays) / found.step


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to set up the run, and what it takes."""

    rank: int
    settings: Settings
    estimate: Estimate
    as_configured: bool = False
    cards: Mapping[int, str] = field(default_factory=dict)


def choices(
    tree: ModelTree, widths: Widths, settings: Settings, rank: int, *, scale: float | None = None
) -> list[Choice]:
    """The configured way first, then the neighbouring ones: other ranks, micro-batches, checkpointing, a 4-bit base.

    Args:
        tree: The model's modules.
        widths: Of its layers, at ``rank``.
        settings: The configured ones.
        rank: Configured rank, at which the tree counts what is trained.
        scale: From :func:`scale_of`, where a step was measured.

    Raises:
        NoEstimateError: It is not known how many parameters are trained.
    """
    trained = tree.trainable
    if trained is None:
        raise NoEstimateError("the number of trained parameters is not known")
    batches = dict.fromkeys((settings.batch, max(settings.batch // 2, 1), 1))
    wanted = [(rank, settings)]
    bases = [settings, *([replace(settings, dtype="bfloat16")] if settings.dtype == "float32" else [])]
    bases += [_with_bits(settings, bits) for bits in (4, 16) if bits != settings.bits]
    for base in bases:
        for checkpointing in (settings.checkpointing, not settings.checkpointing):
            wanted += [(rank, replace(base, checkpointing=checkpointing, batch=batch)) for batch in batches]
    wanted.append((rank, replace(settings, batch=2 * settings.batch)))
    wanted += [(one, settings) for one in (16, 64)]
    found: list[Choice] = []
    for one, chosen in dict.fromkeys(wanted):
        at_rank = replace(widths, ranks=widths.ranks * one / rank)
        made = estimate(tree, at_rank, chosen, trained * one / rank)
        if scale is not None:
            made = _banded(
                {name: size * scale if name in STEP_PARTS else size for name, size in made.parts.items()},
                MEASURED_BAND if not found else 2 * MEASURED_BAND, made.note, calibrated=True,
            )  # fmt: skip
        fits = {size: made.fits(card) for size, card in CARDS.items()}
        found.append(Choice(one, chosen, made, as_configured=not found, cards=fits))
    return found


def _with_bits(settings: Settings, bits: int) -> Settings:
    """The settings with a base of so many bits, and what goes with it: 16-bit numbers, the adapter's type as in TRL."""
    quantised = bits != 16
    return replace(
        settings, bits=bits, dtype="bfloat16" if settings.dtype == "float32" else settings.dtype,
        double_quant=quantised, adapter_dtype="bfloat16" if quantised else "float32",
    )  # fmt: skip


def nearest_fit(found: Iterable[Choice], card: int) -> Choice | None:
    """Of the ways that fit on a card for sure, one that changes least of what was configured; None where none does.

    Of those that change as much, the one that needs most: it gives least away.
    """
    ways = list(found)
    fitting = [one for one in ways if one.cards.get(card) == "yes"]
    return min(fitting, key=lambda one: (_changes(one, ways[0]), -one.estimate.total), default=None)


def _changes(one: Choice, configured: Choice) -> int:
    same = configured.settings
    return sum(
        (
            one.rank != configured.rank, one.settings.batch != same.batch,
            one.settings.checkpointing != same.checkpointing, 2 * (one.settings.bits != same.bits),
            one.settings.bits == same.bits and one.settings.dtype != same.dtype,
        )
    )  # fmt: skip
