"""What the weights of a LoRA adapter say: norms, size of the update, spectrum; from tensors, on the device they are on.

Nothing here ever forms B·A. With the Gram matrices G_A = A·Aᵀ and G_B = Bᵀ·B, both rank × rank, and G_A = L·Lᵀ, the
squared singular values of B·A are the eigenvalues of Lᵀ·G_B·L: for any unit vector, ‖B·A·x‖² is a form in G_B on A·x,
and B·A·Aᵀ·Bᵀ has the non-zero eigenvalues of Lᵀ·Bᵀ·B·L. Gram matrices square the condition number, so they are summed
in float64, which leaves singular values below about 1e-8 of ‖A‖·‖B‖ as noise. Effective rank: Roy and Vetterli,
*The effective rank* (2007).

Importing this module loads neither numpy nor torch nor PEFT.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorawatch.records import AdaptedModule, AdapterReading

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrices = NDArray[Any]

MAX_MODULES = 4096
"""Modules in one reading; further ones are counted."""
BLOCK = 1 << 17
"""Elements of a factor that are widened to float64 at a time on the host: 1 MiB, which stays in a cache.

Measured: 2.8 ms a module of 4096×14336 at rank 64, 3.1 ms with blocks of 16 MiB (CPU time of one thread, AMD EPYC).
"""
CHUNK = 1 << 22
"""Elements of factors that are widened to float64 at a time on a GPU: 32 MiB."""

_PREFIX = re.compile(r"^(?:module\.|_orig_mod\.|base_model\.model\.)+")
_WRAPPERS = re.compile(r"\.(?:base_layer|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)(?=\.|$)")
_KNOWN_VARIANTS = ("Dora", "_Dora", "ALora", "MiCA", "Velora")
"""Variants of PEFT whose A and B mean what LoRA's do. With DoRA the sum of weight and scale·B·A is rescaled; the others
only train, or apply, scale·B·A in another way."""


@dataclass(slots=True)
class Factors:
    """The two factors of one module's adapter, where they lie.

    Attributes:
        name: Dotted name in the base model.
        rank: Columns of B.
        scale: What B·A is multiplied by.
        a: A, as ``[experts, rank, inputs]``: a numpy array or a torch tensor; one expert for an ordinary module.
        b: B transposed, as ``[experts, rank, outputs]``.
        base: Norm of the weight that is adapted: a number, a torch scalar on its device, or None.
        additive: Whether the adapter adds scale·B·A and no more: False with DoRA, which rescales the sum.
    """

    name: str
    rank: int
    scale: float
    a: Any
    b: Any
    base: Any = None
    additive: bool = True


@dataclass(slots=True)
class LeftOut:
    """Adapted modules that cannot be judged, by the reason for it."""

    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str, count: int = 1) -> None:
        """Count ``count`` modules; a plural noun phrase says why."""
        if count:
            self.reasons[reason] += count

    @property
    def total(self) -> int:
        """Modules left out."""
        return self.reasons.total()

    def __str__(self) -> str:
        return "; ".join(f"{count} {reason}" for reason, count in self.reasons.items())


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Norms and spectrum of one scale·B·A; what is not finite is None.

    ``effective_rank`` is None where the update is exactly 0.
    """

    norm_a: float | None
    norm_b: float | None
    update: float | None
    largest: float | None
    effective_rank: float | None


def spectra(grams_a: Matrices, grams_b: Matrices, scale: float) -> list[Spectrum]:
    """Norms and spectra from Gram matrices.

    Args:
        grams_a: A·Aᵀ of each update, ``[updates, rank, rank]``.
        grams_b: Bᵀ·B of each.
        scale: What B·A is multiplied by.
    """
    import numpy as np  # noqa: PLC0415

    squares_a = np.trace(grams_a, axis1=1, axis2=2)
    squares_b = np.trace(grams_b, axis1=1, axis2=2)
    # The diagonal of a Gram matrix sums the squares of every element: it shows any NaN and any infinity.
    sound = np.isfinite(squares_a) & np.isfinite(squares_b)
    squared = np.full(grams_a.shape[:2], math.nan)
    if sound.any():
        squared[sound] = _squared_singular_values(grams_a[sound], grams_b[sound])
    found: list[Spectrum] = []
    for square_a, square_b, values in zip(squares_a, squares_b, squared, strict=True):
        norm_a, norm_b = _root(float(square_a)), _root(float(square_b))
        if not np.isfinite(values).all():
            found.append(Spectrum(norm_a, norm_b, None, None, None))
            continue
        singular = np.sqrt(np.clip(values, 0.0, None)) * abs(scale)
        total = float(singular.sum())
        rank: float | None = None
        if total > 0.0:
            shares = singular[singular > 0.0] / total
            rank = float(np.exp(-(shares * np.log(shares)).sum()))
        update = float(np.sqrt((singular * singular).sum()))
        found.append(Spectrum(norm_a, norm_b, update, float(singular.max(initial=0.0)), rank))
    return found


def _squared_singular_values(grams_a: Matrices, grams_b: Matrices) -> Matrices:
    """Eigenvalues of Lᵀ·G_B·L; NaN where they cannot be had (an overflow)."""
    import numpy as np  # noqa: PLC0415

    with np.errstate(over="ignore", invalid="ignore"):
        try:
            lower = np.linalg.cholesky(grams_a)
            middle = lower.transpose(0, 2, 1) @ grams_b @ lower
            return np.linalg.eigvalsh(middle)
        except np.linalg.LinAlgError:
            if len(grams_a) > 1:  # one of them is singular: each by itself
                pairs = zip(grams_a, grams_b, strict=True)
                return np.concatenate([_squared_singular_values(a[None], b[None]) for a, b in pairs])
        try:
            values, vectors = np.linalg.eigh(grams_a)
            lower = vectors * np.sqrt(np.clip(values, 0.0, None))[:, None, :]
            return np.linalg.eigvalsh(lower.transpose(0, 2, 1) @ grams_b @ lower)
        except np.linalg.LinAlgError:
            return np.full(grams_a.shape[:2], math.nan)


def _root(square: float) -> float | None:
    return math.sqrt(square) if math.isfinite(square) else None


def grams_of_array(factor: NDArray[Any]) -> Matrices:
    """X·Xᵀ in float64 of each ``[rank, width]`` matrix of a host array ``[matrices, rank, width]``."""
    import numpy as np  # noqa: PLC0415

    matrices, rank, width = factor.shape
    found = np.zeros((matrices, rank, rank))
    step = max(BLOCK // max(rank, 1), 1)
    with np.errstate(over="ignore", invalid="ignore"):
        for place, one in enumerate(factor):
            for start in range(0, width, step):
                block = one[:, start : start + step].astype(np.float64)
                found[place] += block @ block.T  # numpy takes half of it only: BLAS's syrk
    return found


def grams_of_tensors(factors: Sequence[Any]) -> Any:
    """X·Xᵀ in float64 of torch tensors of one shape ``[matrices, rank, width]``, on their device.

    Returns:
        A tensor ``[factors, matrices, rank, rank]``. No more than :data:`CHUNK` elements are widened at a time.
    """
    import torch  # noqa: PLC0415

    matrices, rank, width = factors[0].shape
    found: list[Any] = []
    if matrices * rank * width > CHUNK:
        step = max(CHUNK // (matrices * rank), 1)
        for factor in factors:
            gram = torch.zeros((matrices, rank, rank), dtype=torch.float64, device=factor.device)
            for start in range(0, width, step):
                block = factor[:, :, start : start + step].to(torch.float64)
                gram += block @ block.mT
            found.append(gram[None])
    else:
        count = max(CHUNK // max(matrices * rank * width, 1), 1)
        for start in range(0, len(factors), count):
            block = torch.stack(list(factors[start : start + count])).to(torch.float64)
            found.append(block @ block.mT)
    return torch.cat(found)


def _on_gpu(tensor: Any) -> bool:
    return getattr(getattr(tensor, "device", None), "type", "cpu") == "cuda"


def _host_array(tensor: Any) -> NDArray[Any]:
    """A torch tensor or an array as an array on the host; half precision is widened, the rest is not copied."""
    if not hasattr(tensor, "detach"):
        return tensor  # type: ignore[no-any-return]
    tensor = tensor.detach().to("cpu")
    import torch  # noqa: PLC0415

    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.to(torch.float32)
    return tensor.numpy()  # type: ignore[no-any-return]


def _gather_from_gpu(factors: Sequence[Any]) -> dict[int, Matrices]:
    """Gram matrices of tensors on GPUs, by the position of the tensor: one wait, for all of them together."""
    import torch  # noqa: PLC0415

    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, tensor in enumerate(factors):
        groups.setdefault((tuple(tensor.shape), tensor.dtype, tensor.device), []).append(place)
    copies: list[tuple[list[int], Any]] = []
    events: list[Any] = []
    for (_, _, device), places in groups.items():
        with torch.cuda.device(device):
            grams = grams_of_tensors([factors[place].detach() for place in places])
            host = torch.empty(grams.shape, dtype=grams.dtype, pin_memory=True)
            host.copy_(grams, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        copies.append((places, host))
        events.append(event)
    for event in events:
        event.synchronize()
    return {place: host.numpy()[row] for places, host in copies for row, place in enumerate(places)}


def measure(found: Sequence[Factors]) -> list[AdaptedModule]:
    """The numbers of each module, in the order given. Waits for each GPU once, however many modules there are."""
    on_gpu = {index: one for index, one in enumerate(found) if _on_gpu(one.a) and _on_gpu(one.b)}
    grams = _gather_from_gpu([matrix for one in on_gpu.values() for matrix in (one.a, one.b)]) if on_gpu else {}
    pairs: dict[int, tuple[Matrices, Matrices]] = {}
    for place, index in enumerate(on_gpu):
        pairs[index] = grams[2 * place], grams[2 * place + 1]
    bases = _host_norms([one.base for one in found])
    modules: list[AdaptedModule] = []
    for index, one in enumerate(found):
        pair = pairs.get(index) or (grams_of_array(_host_array(one.a)), grams_of_array(_host_array(one.b)))
        modules.append(_module(one, spectra(*pair, one.scale), bases[index]))
    return modules


def _module(one: Factors, parts: Sequence[Spectrum], base: float | None) -> AdaptedModule:
    """One module of one update, or of one an expert."""
    norms_a, norms_b = [part.norm_a for part in parts], [part.norm_b for part in parts]
    ranks = sorted(part.effective_rank for part in parts if part.effective_rank is not None)
    return AdaptedModule(
        name=one.name,
        rank=one.rank,
        scale=one.scale,
        norm_a=_together(norms_a),
        norm_b=_together(norms_b),
        update=_together([part.update for part in parts]) if one.additive else None,
        base=base,
        largest=max(known) if (known := _all(part.largest for part in parts)) else None,
        effective_rank=ranks[len(ranks) // 2] if ranks else None,
        finite=None not in norms_a and None not in norms_b,
    )


def _all(values: Iterable[float | None]) -> list[float]:
    """The values; none at all where one is unknown."""
    known = list(values)
    return [] if None in known else [value for value in known if value is not None]


def _together(norms: Iterable[float | None]) -> float | None:
    known = _all(norms)
    return math.hypot(*known) if known else None


def _host_norms(bases: Sequence[Any]) -> list[float | None]:
    """Norms as numbers; those on a device come in one transfer a device."""
    found: list[float | None] = [base if isinstance(base, float) else None for base in bases]
    by_device: dict[Any, list[int]] = {}
    for index, base in enumerate(bases):
        if hasattr(base, "device"):
            by_device.setdefault(base.device, []).append(index)
    for places in by_device.values():
        import torch  # noqa: PLC0415

        numbers = torch.stack([bases[place].to(torch.float64) for place in places]).cpu().tolist()
        for place, number in zip(places, numbers, strict=True):
            found[place] = number if math.isfinite(number) else None
    return found


def base_name(name: str) -> str:
    """The name of a module in its base model, without what PEFT, torch and data parallelism put around it."""
    return _WRAPPERS.sub("", _PREFIX.sub("", name))


def find_factors(
    model: Any, bases: Mapping[str, float | None] | None = None, *, base_norms: bool = True
) -> tuple[list[Factors], LeftOut]:
    """The factors of the adapter that is active, as they stand in the model; nothing is copied, and nothing gathered.

    Args:
        model: A torch model with LoRA layers of PEFT somewhere in it.
        bases: Norms of adapted weights that are known already, by name; they are not measured again.
        base_norms: Whether to measure the others.

    Returns:
        The factors in the order of the model, and what was left out. Weights that are sharded over processes are left
        out: to gather them takes a collective, which a monitor must not start.
    """
    found: list[Factors] = []
    left_out = LeftOut()
    if "peft" not in sys.modules:
        return found, left_out
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415

    fsdp = any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())
    seen: set[frozenset[int]] = set()
    for name, layer in model.named_modules():
        kind = type(layer).__name__
        if kind in ("ModulesToSaveWrapper", "TrainableTokensWrapper"):
            left_out.add("trained in full (modules_to_save or trainable tokens)")
            continue
        if not isinstance(layer, LoraLayer):
            continue
        adapter, why = _adapter_of(layer)
        if fsdp and (adapter or why):
            why = "sharded by FSDP"
        if why:
            left_out.add(why)
        if why or not adapter:
            continue
        factors = _factors(name, layer, adapter)
        if isinstance(factors, str):
            left_out.add(factors)
            continue
        weights = frozenset((factors.a.data_ptr(), factors.b.data_ptr()))
        if weights in seen:  # tied: two names of one adapter
            continue
        seen.add(weights)
        if len(found) >= MAX_MODULES:
            left_out.add(f"beyond the first {MAX_MODULES}")
            continue
        if bases is not None and factors.name in bases:
            factors.base = bases[factors.name]
        elif base_norms:
            factors.base = _base_norm(layer)
        found.append(factors)
    return found, left_out


def _adapter_of(layer: Any) -> tuple[str, str]:
    """The adapter of a layer to judge, and why it cannot be judged; two empty texts where none of it is active."""
    names = [one for one in layer.active_adapters if one in layer.lora_A or one in layer.lora_embedding_A]
    if names and hasattr(layer, "lora_E"):
        return "", "of AdaLoRA, which has singular values of its own"
    if len(names) > 1:
        names = [one for one in names if any(weight.requires_grad for weight in _weights(layer, one))]
        if len(names) != 1:
            return "", "with several active adapters"
    if not names:
        return "", ""
    variant = getattr(layer, "lora_variant", {}).get(names[0])
    kind = type(variant).__name__
    if variant is not None and not kind.startswith(_KNOWN_VARIANTS):
        return "", f"of the form {kind}"
    return names[0], ""


def _weights(layer: Any, adapter: str) -> Iterator[Any]:
    if adapter in layer.lora_A:
        yield layer.lora_A[adapter].weight
        yield layer.lora_B[adapter].weight
    else:
        yield layer.lora_embedding_A[adapter]
        yield layer.lora_embedding_B[adapter]


def _factors(name: str, layer: Any, adapter: str) -> Factors | str:
    """The factors of one layer, or why they cannot be judged."""
    weights = list(_weights(layer, adapter))
    reason = next(filter(None, map(_unreadable, weights)), "")
    if reason:
        return reason
    a, b = (weight.detach() for weight in weights)
    experts = int(getattr(layer, "num_experts", 1))
    name = base_name(name)
    parameter = getattr(layer, "parameter_name", "")
    if parameter:  # target_parameters: PEFT keeps A as [experts · rank, inputs] and B as [outputs, rank · experts]
        name = f"{name}.{parameter}"
        a = a.reshape(experts, -1, a.shape[-1])
        b = b.reshape(b.shape[0], -1, experts).permute(2, 1, 0)
    else:
        a, b = a.flatten(1)[None], b.flatten(1).T[None]
    if a.shape[1] != b.shape[1]:
        return "of grouped convolutions"
    dora = bool(getattr(layer, "use_dora", {}).get(adapter, False)) or adapter in getattr(
        layer, "lora_magnitude_vector", {}
    )
    return Factors(name, int(a.shape[1]), float(layer.scaling[adapter]), a, b, additive=not dora)


def _unreadable(weight: Any) -> str:
    if hasattr(weight, "ds_id"):
        return "sharded by DeepSpeed ZeRO-3"
    if type(weight).__name__ == "DTensor":
        return "sharded over devices"
    if weight.device.type == "meta":
        return "without weights here (offloaded)"
    if weight.ndim < 2 or 0 in weight.shape:
        return "sharded (their factors have no rows here)"
    return "" if weight.is_floating_point() else "of a type that is no floating-point number"


def _base_norm(layer: Any) -> Any:
    """Norm of the weight that a layer adapts, as a torch scalar on its device; None where it cannot be had.

    A weight in bitsandbytes' 4 bits is dequantised for it, one module at a time. Other quantised weights give None, and
    so does a layer that is merged: its weight holds the update.
    """
    import torch  # noqa: PLC0415

    if getattr(layer, "merged", False):
        return None
    base = layer.get_base_layer()
    weight = getattr(base, getattr(layer, "parameter_name", "") or "weight", None)
    if weight is None or weight.device.type == "meta" or hasattr(weight, "ds_id"):
        return None
    if type(weight).__name__ == "Params4bit":
        weight = _dequantised(weight)
    elif type(weight) not in (torch.nn.Parameter, torch.Tensor):
        return None
    if weight is None or weight.ndim < 2 or not weight.numel():
        return None
    if weight.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return None
    wide = weight.dtype if weight.dtype == torch.float64 else torch.float32
    return torch.linalg.vector_norm(weight.detach(), dtype=wide)


def _dequantised(weight: Any) -> Any:
    state = getattr(weight, "quant_state", None)
    functional: Any = getattr(sys.modules.get("bitsandbytes"), "functional", None)
    if state is None or functional is None:  # it is quantised when it first moves to a GPU
        return None
    return functional.dequantize_4bit(weight.data, state)


def look_at_adapter(
    model: Any, step: int, bases: dict[str, float | None] | None = None, *, base_norms: bool = True
) -> AdapterReading | None:
    """The adapter's weights by now, in numbers.

    Draws no random number, sets no mode, and keeps nothing of the model. On a GPU it computes on the device and waits
    once, for its own work: to be called where the Trainer has just waited, right after a log.

    Args:
        model: A torch model with LoRA layers of PEFT in it, wrapped in whatever way.
        step: Optimizer step.
        bases: Norms of adapted weights from an earlier look, by name; new ones are put in. Base weights do not change.
        base_norms: Whether to measure those that are not there.

    Returns:
        The reading; None where the model has no LoRA layer.
    """
    began = time.perf_counter()
    import torch  # noqa: PLC0415

    with torch.no_grad():
        factors, left_out = find_factors(model, bases, base_norms=base_norms)
        modules = measure(factors)
    if not modules and not left_out.total:
        return None
    if base_norms and bases is not None:
        bases |= {module.name: module.base for module in modules}
    return AdapterReading(
        step=step,
        modules=modules,
        left_out=left_out.total,
        why_left_out=str(left_out),
        seconds=time.perf_counter() - began,
        time=time.time(),
    )


class AdapterLooks:
    """Looks at the adapter from time to time, at a bounded cost.

    The first look comes at step ``first`` (as many steps after the first call, where a run goes on from a later one).
    Later ones come every ``every`` steps, but only once all looks together, the next one with them, take no more than
    ``share`` of the time since the first call. The first look, which cannot know what it costs, is the one thing that
    may exceed it; the next one waits until it is paid off.

    To be called after each log, where the Trainer has just waited for the device: a look then waits for its own work
    alone.

    Args:
        every: Steps between looks, at least.
        first: Step of the first look: B has left 0 by then.
        share: Of the wall time, at most.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, every: int = 100, first: int = 20, share: float = 0.01, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.every, self.first, self.share = every, first, share
        self.spent = 0.0
        self._clock = clock
        self._bases: dict[str, float | None] = {}
        self._began: float | None = None
        self._start = 0
        self._last: int | None = None
        self._cost = 0.0
        self._without = False

    def due(self, step: int) -> bool:
        """Whether a look at this step is due, and can be paid for."""
        now = self._clock()
        if self._began is None or step < self._start:  # the first call, or a trainer that begins anew
            self._began, self._start, self._last, self.spent = now, step, None, 0.0
        if self._without:
            return False
        if self._last is None:
            return step >= self.first + (self._start if self._start > self.first else 0)
        return step >= self._last + self.every and self.spent + self._cost <= self.share * (now - self._began)

    def look(self, model: Any, step: int) -> AdapterReading | None:
        """A reading, where one is due; None otherwise, and always None for a model without LoRA layers."""
        if not self.due(step):
            return None
        before = self._clock()
        reading = look_at_adapter(model, step, self._bases)
        self._cost = self._clock() - before
        self.spent += self._cost
        self._last = step
        self._without = reading is None
        return reading
