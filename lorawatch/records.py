"""What sources say: plain, frozen records of what happened to a run.

A record carries the time and the step at which the thing happened, never the moment at which lorawatch read it.
That is what makes live judgement, replay and the callback agree.

Records are ``msgspec.Struct`` rather than frozen dataclasses: making one costs 0.1 µs instead of 0.9 µs, and the same
declaration reads and writes the lines of ``lorawatch.jsonl``.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Event = Literal["started", "resumed", "evaluated", "saved", "ended"]


class MetricRow(msgspec.Struct, frozen=True, tag_field="type", tag="metrics", gc=False, omit_defaults=True):
    """Metrics that were logged together, at one step.

    Attributes:
        step: Optimizer step (``global_step``) at which the row was logged; None when it cannot be told.
        values: Metric name, as the trainer spells it (``loss``, ``grad_norm``, ``eval_loss``), to its value. May be
            NaN or infinite. Never holds ``epoch`` or ``step``.
        epoch: Epoch as a fraction, None when the row does not tell it.
        time: Unix time in seconds at which the row was logged, None when the source does not tell it.
        estimated: True when ``step`` was reconstructed rather than read.
    """

    step: int | None
    values: dict[str, float]
    epoch: float | None = None
    time: float | None = None
    estimated: bool = False


class FactUpdate(msgspec.Struct, frozen=True, tag_field="type", tag="facts", omit_defaults=True):
    """Something that became known of the run's set-up.

    Attributes:
        values: Fact name to value. Names are those of ``TrainingArguments`` and ``LoraConfig`` fields
            (``learning_rate``, ``lora_alpha``), plus ``vocab_size``, ``world_size``, ``train_rows``,
            ``transformers_version``, ``peft_version``, ``trl_version`` and ``trainer_class``.
        origin: Where it was learnt, for a person to read: a file name or ``callback``.
        inferred: True for a guess from the log, which never replaces what was stated.
    """

    values: dict[str, Any]
    origin: str
    inferred: bool = False


class LifecycleEvent(msgspec.Struct, frozen=True, tag_field="type", tag="event", gc=False, omit_defaults=True):
    """Something that happened to the job as a whole.

    ``started`` opens a new run: what follows belongs to it. ``resumed`` means that the same run goes on from ``step``,
    which may be a step that was seen before. ``ended`` means that the trainer finished (its ``train_runtime`` summary).
    """

    event: Event
    step: int | None = None
    time: float | None = None
    detail: str = ""


class Step(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where the time of one optimizer step went, in seconds of the wall clock, and how large its batch was.

    Attributes:
        data_wait: From the end of the step before (its logging, evaluation and saving included) to the beginning of
            this one: the wait for all of its micro-batches. None for the first step of an epoch, whose wait holds the
            start of the workers and one batch of look-ahead.
        forward_backward: Forward and backward passes of all micro-batches, gradient clipping included.
        optimizer: The optimizer's and the scheduler's step.
        after: Callbacks at the end of the step, logging, evaluation and saving.
        tokens: Tokens in the micro-batches that are not padding; None where the data loader does not show them.
        padded_tokens: Tokens in the micro-batches, padding included.
        largest_micro_batch: Tokens of the largest micro-batch, padding included.
    """

    data_wait: float | None
    forward_backward: float
    optimizer: float
    after: float = 0.0
    tokens: int | None = None
    padded_tokens: int | None = None
    largest_micro_batch: int | None = None

    @property
    def work(self) -> float:
        """Seconds of training proper: passes and optimizer."""
        return self.forward_backward + self.optimizer

    @property
    def seconds(self) -> float | None:
        """Wait and work together, without what comes after; None where the wait is not known."""
        return None if self.data_wait is None else self.data_wait + self.forward_backward + self.optimizer


class AllocatorReading(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What torch's caching allocator says of one device, in bytes. Peaks are since the process began.

    Attributes:
        allocated: In tensors now, at the end of a step.
        peak_allocated: The most that was in tensors at once.
        reserved: Held by the allocator, in tensors or kept for reuse.
        peak_reserved: The most that it held.
        alloc_retries: Times that it had to give cached memory back and try again.
        ooms: Out-of-memory errors that it raised.
        device: Index of the device as the process sees it.
        uuid: UUID of the card, as NVML spells it; "" where it is not known.
    """

    allocated: int
    peak_allocated: int
    reserved: int
    peak_reserved: int
    alloc_retries: int = 0
    ooms: int = 0
    device: int = 0
    uuid: str = ""


class StepTiming(msgspec.Struct, frozen=True, tag_field="type", tag="steps", omit_defaults=True):
    """How the last optimizer steps went. The callback writes several steps in one record, to spare the loop.

    From outside only their number and their time are known: ``steps`` is empty then.

    Attributes:
        step: The last step of the span.
        span: Steps that it covers: ``step - span + 1`` to ``step``.
        steps: Each of them, oldest first; empty when only the whole span is known.
        seconds: Wall time of the whole span, logging, evaluation and saving included; None where it is not known.
        time: Unix time at the end of the last step.
        logging: Seconds in logging after steps of the span; they are part of the steps' ``after``.
        evaluation: Seconds in evaluation; likewise.
        saving: Seconds in saving; likewise.
        saves: Checkpoints that were written in the span.
        allocator: What torch's allocator said after the last step; None without a GPU, or where it was not asked.
    """

    step: int
    span: int
    steps: list[Step] = []
    seconds: float | None = None
    time: float | None = None
    logging: float = 0.0
    evaluation: float = 0.0
    saving: float = 0.0
    saves: int = 0
    allocator: AllocatorReading | None = None


class GpuProcess(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One process that holds memory of a card.

    Attributes:
        pid: As the driver tells it: in a container it may be a number of the host's.
        memory: Bytes; None where the driver does not tell.
        name: Name of its program, where it can be read.
        own: True for the watched run's own processes, False for another's, None where it cannot be told.
    """

    pid: int
    memory: int | None = None
    name: str = ""
    own: bool | None = None


class Card(msgspec.Struct, frozen=True, omit_defaults=True):
    """One GPU, or one MIG instance, over the time between two readings. What it does not tell is None, never 0.

    Attributes:
        index: Index in NVML's order (PCI bus order), whatever CUDA_VISIBLE_DEVICES says.
        uuid: UUID of the card or of the MIG instance.
        name: Product name.
        lost: True when the driver says that the card has fallen off the bus, or it stopped answering.
        samples: Looks at the card that went into the reading.
        memory_total: Bytes. None where memory is the host's own (unified memory).
        memory_used: The most bytes in use at any look, all processes and the driver's reserve taken together.
        memory_reserved: Bytes that driver and firmware hold.
        own_memory: Bytes that the run's own processes held at the look with the most; None where it cannot be told.
        processes: Who holds memory, the largest first, at most eight.
        utilization: Mean share of the time in which a kernel ran, 0 to 1.
        utilization_lowest: The lowest of the looks.
        power: Mean watts.
        power_limit: Watts at which it is capped.
        temperature: The highest of the looks, in degrees Celsius.
        sm_clock: Mean clock of the multiprocessors in hertz.
        max_sm_clock: Their highest clock in hertz.
        throttled: Reason (``sw_thermal``, ``hw_thermal``, ``hw_slowdown``, ``power_brake``, ``sw_power_cap``) to the
            share of looks, 0 to 1, at which it held the clocks down. Reasons that never held are left out; None where
            the card does not tell any.
        ecc_uncorrected: Uncorrected memory errors since the driver was loaded.
        ecc_corrected: Corrected ones.
        remapped_rows: Rows remapped for uncorrected errors over the card's life.
        remap_pending: Whether a row waits for a reset to be remapped.
        remap_failure: Whether remapping a row has failed.
        xids: Xid errors that the driver raised since the reading before, in order, at most 32.
        pcie_generation: The highest link generation seen.
        pcie_generation_max: What card and slot can do together.
        pcie_width: The widest link seen, in lanes.
        pcie_width_max: What card and slot can do together.
        mig: Whether it is a MIG instance.
        vendor: Which collector saw it: ``nvidia``, ``amd``.
    """

    index: int
    uuid: str
    name: str = ""
    lost: bool = False
    samples: int = 1
    memory_total: int | None = None
    memory_used: int | None = None
    memory_reserved: int | None = None
    own_memory: int | None = None
    processes: list[GpuProcess] = []
    utilization: float | None = None
    utilization_lowest: float | None = None
    power: float | None = None
    power_limit: float | None = None
    temperature: float | None = None
    sm_clock: float | None = None
    max_sm_clock: float | None = None
    throttled: dict[str, float] | None = None
    ecc_uncorrected: int | None = None
    ecc_corrected: int | None = None
    remapped_rows: int | None = None
    remap_pending: bool | None = None
    remap_failure: bool | None = None
    xids: list[int] = []
    pcie_generation: int | None = None
    pcie_generation_max: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    mig: bool = False
    vendor: str = "nvidia"


class GpuReading(msgspec.Struct, frozen=True, tag_field="type", tag="gpus", omit_defaults=True):
    """The cards that a run uses, at one moment.

    Attributes:
        time: Unix time at its end.
        cards: One entry a card or MIG instance.
        seconds: Time that it covers: since the reading before it; 0 for the first.
    """

    time: float
    cards: list[Card]
    seconds: float = 0.0


class ProcessReading(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One process of the run, over the time between two readings.

    Attributes:
        pid: Process id.
        role: ``trainer``, ``rank`` (a trainer of another rank on this machine) or ``worker`` (of a data loader).
        cpu: Mean cores in use; None at the first look.
        rss: Resident memory in bytes.
        read_rate: Bytes a second that it read from storage; None where the system does not let one see it.
        waiting_for_disk: Share of the looks, 0 to 1, at which it was in uninterruptible sleep: usually storage.
    """

    pid: int
    role: Literal["trainer", "rank", "worker"]
    cpu: float | None = None
    rss: int | None = None
    read_rate: float | None = None
    waiting_for_disk: float = 0.0


class HostReading(msgspec.Struct, frozen=True, tag_field="type", tag="host", omit_defaults=True):
    """The machine, as far as the run may use it, at one moment. What it does not tell is None, never 0.

    Where a cgroup sets a lower limit than the machine has, the limit and what is used of it stand here.

    Attributes:
        time: Unix time at its end.
        seconds: Time that rates are taken over: since the reading before; 0 for the first, which has none.
        memory_total: Bytes that may be used.
        memory_available: Bytes of these that can be had without swapping, at the lowest look.
        swap_in_rate: Bytes a second swapped in.
        major_faults_rate: Page faults a second, of the whole machine, that had to read from storage.
        cpus: Processors that the trainer may use: its affinity and the CPU quota of its cgroup respected. Both are read
            at the start and every 30 s.
        cpu: Mean cores of these that are taken, by whichever process: ``cpus - cpu`` are free. On a machine of 64, of
            which a run is bound to one, it is about 1 at most. Where the quota is less than the affinity leaves, what
            the cgroup uses counts, or more where others leave less of the processors. None where that cannot be told.
        load: Load average over a minute.
        disk_path: Where the run's checkpoints go: the file system that ``disk_*`` tells of.
        disk_total: Its bytes.
        disk_free: Bytes free for this user.
        disk_read_rate: Bytes a second read from all disks.
        disk_write_rate: Bytes a second written to all disks.
        receive_rate: Bytes a second from the network, loopback left out.
        send_rate: Bytes a second to the network, loopback left out.
        checkpoint_bytes: Size of the newest whole checkpoint of the run; None before there is one.
        processes: The trainer and its data-loader workers, at most 64, the trainer first.
        alive: Whether the trainer's process is there; None where it is not known which it is.
        idle: Seconds since the last sign of progress: an event of the trainer, or from outside a row, a bar, a save.
        phase: What the trainer was doing then: ``training``, ``evaluation``, ``saving``; "" where it is not known.
        step: The trainer's step at the reading, None where it is not known.
    """

    time: float
    seconds: float = 0.0
    memory_total: int | None = None
    memory_available: int | None = None
    swap_in_rate: float | None = None
    major_faults_rate: float | None = None
    cpus: float | None = None
    cpu: float | None = None
    load: float | None = None
    disk_path: str = ""
    disk_total: int | None = None
    disk_free: int | None = None
    disk_read_rate: float | None = None
    disk_write_rate: float | None = None
    receive_rate: float | None = None
    send_rate: float | None = None
    checkpoint_bytes: int | None = None
    processes: list[ProcessReading] = []
    alive: bool | None = None
    idle: float | None = None
    phase: str = ""
    step: int | None = None


class ModuleGroup(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Modules of a model that have the same name but for their layer's number, and the same shape.

    Attributes:
        name: Dotted name in the base model, each number in it a ``*``: ``model.layers.*.self_attn.q_proj``.
        kind: ``linear`` (``Conv1D`` of GPT-2 too), ``embedding``, ``norm``, ``experts`` (fused weights of a mixture)
            or ``other``.
        inputs: Width of its input; 0 where it has none.
        outputs: Width of its output; 0 where it has none.
        count: Modules in the group.
        parameters: Parameters of one of them, its own only.
        adapted: How many of them an adapter's configuration names; None where there is no adapter.
        tied: Its weight is another module's too (an ``lm_head`` tied to the embedding).
    """

    name: str
    kind: Literal["linear", "embedding", "norm", "experts", "other"]
    inputs: int
    outputs: int
    count: int
    parameters: int
    adapted: int | None = None
    tied: bool = False


class ModelTree(msgspec.Struct, frozen=True, tag_field="type", tag="model", omit_defaults=True):
    """The modules of the base model, and what an adapter's configuration makes of them.

    Attributes:
        groups: Modules that have parameters or that an adapter could take, in the order of the model, at most 512.
        targets: Each entry of ``target_modules`` (one, for a regular expression or ``all-linear``) to the number of
            modules that it matches, and each of ``target_parameters`` to that of the parameters. Empty where there is
            no adapter.
        saved: Each entry of ``modules_to_save`` to the number of modules that it matches.
        parameters: Parameters of the base model, tied ones counted once.
        trainable: Parameters that the adapter trains; None where that cannot be told.
        layers: Decoder layers; 0 where they cannot be told.
        origin: Where it was learnt: ``model`` (a real one), ``config`` (built without weights), ``index``.
    """

    groups: list[ModuleGroup]
    targets: dict[str, int] = {}
    saved: dict[str, int] = {}
    parameters: int = 0
    trainable: int | None = None
    layers: int = 0
    origin: str = ""
    time: float | None = None


class LabelledPiece(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Neighbouring tokens of a row that are all trained on, or all masked.

    Attributes:
        text: The tokens, decoded.
        trained: Whether their labels count.
    """

    text: str
    trained: bool


class LabelAudit(msgspec.Struct, frozen=True, tag_field="type", tag="labels", omit_defaults=True):
    """What the labels of some collated rows are: counts, and a few rows to look at.

    Attributes:
        rows: Rows that were looked at.
        tokens: Tokens in them, padding left out.
        trained: Tokens whose label is not -100.
        untrained_rows: Rows without any trained token.
        truncated_rows: Rows that are as long as ``max_length`` and do not end with an end token.
        ended_rows: Rows that hold an end token after their last trained token begins, so that it could be trained.
        unsupervised_ends: Rows of these whose end token is masked.
        double_bos_rows: Rows that begin with two BOS tokens.
        duplicate_rows: Rows whose tokens are those of an earlier one.
        foreign_template_rows: Rows with the turn markers of another chat template than the tokenizer's.
        pad_is_eos: Whether padding and end token are the same; None where there is no padding token.
        prompt_trained_rows: Rows whose prompt is trained on, too.
        packed: Whether rows hold several examples.
        max_length: Tokens at which rows are cut; None where that is not known.
        examples: A few rows, each as pieces; texts are cut.
        marker: The end token that was looked for, as text.
        time: Unix time.
    """

    rows: int
    tokens: int
    trained: int
    untrained_rows: int = 0
    truncated_rows: int = 0
    ended_rows: int = 0
    unsupervised_ends: int = 0
    double_bos_rows: int = 0
    duplicate_rows: int = 0
    foreign_template_rows: int = 0
    pad_is_eos: bool | None = None
    prompt_trained_rows: int = 0
    packed: bool = False
    max_length: int | None = None
    examples: list[list[LabelledPiece]] = []
    marker: str = ""
    time: float | None = None


class AdaptedModule(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One module's adapter, in numbers. Norms are Frobenius norms. What cannot be told is None, never 0.

    Attributes:
        name: Dotted name in the base model, without PEFT's prefixes: ``model.layers.3.mlp.down_proj``.
        rank: Columns of B.
        scale: What B·A is multiplied by: ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with rsLoRA.
        norm_a: Norm of A; None where it is not finite.
        norm_b: Norm of B; None where it is not finite.
        update: Norm of scale·B·A; None where it is not finite.
        base: Norm of the weight that is adapted; None where it was not measured.
        largest: Largest singular value of scale·B·A.
        effective_rank: Exponential of the entropy of its singular values' shares (Roy and Vetterli 2007), 1 to rank.
        finite: False where A or B holds a NaN or an infinity.
    """

    name: str
    rank: int
    scale: float
    norm_a: float | None = None
    norm_b: float | None = None
    update: float | None = None
    base: float | None = None
    largest: float | None = None
    effective_rank: float | None = None
    finite: bool = True


class AdapterReading(msgspec.Struct, frozen=True, tag_field="type", tag="adapter", omit_defaults=True):
    """The adapter's weights at one step.

    Attributes:
        step: Optimizer step.
        modules: One entry an adapted module, in the order of the model, at most 4,096.
        left_out: Adapted modules beyond these, or of a form that cannot be judged.
        why_left_out: The form, for a person; "" where nothing was left out.
        seconds: What it took.
        time: Unix time.
        origin: ``callback``, or the checkpoint folder's name.
    """

    step: int
    modules: list[AdaptedModule]
    left_out: int = 0
    why_left_out: str = ""
    seconds: float = 0.0
    time: float | None = None
    origin: str = "callback"


class Sample(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One greedy reply to one prompt.

    Attributes:
        prompt: The prompt, cut to 2,000 characters.
        output: The reply, cut to 4,000 characters.
        ended: Whether it ended by an end token, not by the limit of new tokens.
        tokens: New tokens, the end token not counted.
        probe: ``task`` (a prompt of the run's own data or of the user's file) or ``general`` (what a base model can
            do).
        right: Whether it answers as it should; None where the prompt has no answer to check.
        logprob: Mean log-probability of its tokens under the base model, in nats; None where it was not measured.
        reference_tokens: Tokens of the reply that the data gives; None where there is none.
    """

    prompt: str
    output: str
    ended: bool
    tokens: int
    probe: Literal["task", "general"] = "task"
    right: bool | None = None
    logprob: float | None = None
    reference_tokens: int | None = None


class SampleReading(msgspec.Struct, frozen=True, tag_field="type", tag="samples", omit_defaults=True):
    """What the model says at one step, and what the base model says to the same prompts.

    Attributes:
        step: Optimizer step.
        samples: Replies of the model as it is trained by now.
        base: Replies of the base model to the same prompts in the same order, the adapter switched off. They stand in
            the first reading of a process only; empty later.
        kl: Mean KL divergence a token of the base's distribution from the tuned one's, forward (base first), on task
            prompts, in nats; None where it was not measured.
        perplexity: Of general passages, with the adapter; None where it was not measured.
        base_perplexity: Of the same passages, without it.
        max_new_tokens: Limit of a reply's length.
        seconds: What it took.
        time: Unix time.
        origin: ``callback``, or a file's name.
    """

    step: int
    samples: list[Sample]
    base: list[Sample] = []
    kl: float | None = None
    perplexity: float | None = None
    base_perplexity: float | None = None
    max_new_tokens: int = 0
    seconds: float = 0.0
    time: float | None = None
    origin: str = "callback"


Reading = StepTiming | GpuReading | HostReading | ModelTree | LabelAudit | AdapterReading | SampleReading
"""What is seen of the machine and of the model, beside what the trainer logs."""
Judged = MetricRow | FactUpdate | Reading
"""What a rule may judge."""
Record = Judged | LifecycleEvent
