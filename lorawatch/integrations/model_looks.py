"""Looks at the model that is trained: its modules and labels before the first step, then its adapter and its replies.

Each look is guarded on its own: one that fails is said once and not tried again, and the rest of the watch goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

from lorawatch.lora.adapter_health import AdapterLooks
from lorawatch.lora.generations import GenerationLooks, probes_of_run, why_not
from lorawatch.lora.label_audit import LabelError, NoLabelsError, audit_labels, spread_rows
from lorawatch.lora.model_tree import tree_of_model
from lorawatch.lora.probes import ProbesError, ProbeSet
from lorawatch.records import LabelAudit, Reading
from lorawatch.render import printable
from lorawatch.settings import Settings

ADAPTER_LOOKS = 20
"""Looks at the adapter that a run gets at least, where its length is known: growth is told by five of them."""
LEAST_ADAPTER_STEPS = 10
"""Steps between two of them at least."""
SPLIT = ("bfd_split", "wrapped")
"""TRL's packing strategies that carry what is longer than a row on into another one."""
Result = TypeVar("Result")


class ModelLooks:
    """The looks of one training, on the process that speaks.

    Nothing here draws a random number for the training, changes a mode or calls a collective.

    Args:
        settings: How often to look, and what for.
        say: Tells a person, in one line, what cannot be looked at.
        probes: What to ask the model; None for the settings' file, or else the run's own data.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None], probes: ProbeSet | None = None) -> None:
        self._settings = settings
        self._say = say
        self._probes = probes
        self._adapter: AdapterLooks | None = None
        self._replies: GenerationLooks | None = None
        self._tokenizer: Any = None
        self._why_no_base = ""
        self._failed: set[str] = set()

    def begin(
        self,
        model: Any,
        tokenizer: Any,
        args: Any,
        *,
        train_dataloader: Any = None,
        eval_dataloader: Any = None,
        max_steps: int = 0,
    ) -> list[Reading]:
        """What is seen before the first step: the modules, and the labels of the first rows.

        Args:
            model: The model, its adapter on.
            tokenizer: Its tokenizer or processor; None where the trainer has none.
            args: The training arguments.
            train_dataloader: Batches to train on.
            eval_dataloader: Batches to evaluate on.
            max_steps: Steps of the run; 0 where they are not known.
        """
        seen: list[Reading] = []
        if model is not None:
            tree = self._try("the model's modules", lambda: tree_of_model(model, time=time.time()))
            seen += [tree] if tree is not None else []
        if train_dataloader is not None:
            labels = self._try("the labels", lambda: self._labels(train_dataloader, tokenizer, args))
            seen += [labels] if labels is not None else []
        if _has_adapter(model):
            if self._settings.adapter_steps:
                self._adapter = AdapterLooks(_steps_between(self._settings.adapter_steps, max_steps))
            if self._settings.sample_steps:
                data = [getattr(one, "dataset", None) for one in (eval_dataloader, train_dataloader)]
                self._try("the model's replies", lambda: self._prepare_replies(model, tokenizer, data, args))
        return seen

    def after_log(self, model: Any, step: int) -> list[Reading]:
        """What is due after a log: the adapter's weights and the model's replies.

        To be called where the loop has just logged, between two optimizer steps.
        """
        seen: list[Reading] = []
        adapter, replies = self._adapter, self._replies
        if adapter is not None:
            reading = self._try("the adapter", lambda: adapter.look(model, step))
            seen += [reading] if reading is not None else []
        if replies is not None:
            said = self._try("the model's replies", lambda: replies.look(model, self._tokenizer, step))
            seen += [said] if said is not None else []
            if replies.why_not:
                self._say(f"no sample generations: {printable(replies.why_not)}")
                self._replies = None
            elif replies.why_no_base != self._why_no_base:
                self._why_no_base = replies.why_no_base
                if self._why_no_base:
                    self._say(f"replies are not held against the base model's: {printable(self._why_no_base)}")
        return seen

    def _prepare_replies(self, model: Any, tokenizer: Any, data: list[Any], args: Any) -> None:
        """Choose what to ask; say so where nothing can be asked."""
        try:
            if self._probes is not None:
                probes, why = self._probes, ""
            else:
                probes, why = probes_of_run(self._settings.probes, data, tokenizer)
        except ProbesError as error:
            self._say(f"no sample generations: {printable(error)}")
            return
        if reason := why_not(model, tokenizer, probes):
            self._say(f"no sample generations: {printable(reason)}")
            return
        if why:
            self._say(f"sample generations ask general questions only: {printable(why)}")
        precision = next((one for one in ("bf16", "fp16") if getattr(args, one, False)), "no")
        self._tokenizer = tokenizer
        share = self._settings.sample_share
        self._replies = GenerationLooks(
            probes, every=self._settings.sample_steps, share=share if share < 1 else math.inf, mixed_precision=precision
        )

    def _labels(self, train_dataloader: Any, tokenizer: Any, args: Any) -> LabelAudit | None:
        splits = bool(getattr(args, "packing", False)) and getattr(args, "packing_strategy", "") in SPLIT
        length = getattr(args, "max_length", None) or getattr(args, "max_seq_length", None)
        try:
            return audit_labels(
                spread_rows(train_dataloader), tokenizer, max_length=length, cuts=not splits, time=time.time()
            )
        except NoLabelsError:  # preference pairs and prompts have none
            return None
        except LabelError as reason:
            self._say(f"the labels are not looked at: {printable(reason)}")
            return None

    def _try(self, what: str, look: Callable[[], Result]) -> Result | None:
        if what in self._failed:
            return None
        try:
            return look()
        except Exception as error:
            self._failed.add(what)
            self._say(f"{what} cannot be looked at: {type(error).__name__}: {printable(error)}"[:300])
            return None


def _has_adapter(model: Any) -> bool:
    return bool(getattr(getattr(model, "module", model), "peft_config", None))


def _steps_between(asked: int, max_steps: int) -> int:
    """Steps between two looks at the adapter: as asked, fewer in a short run."""
    return min(asked, max(max_steps // ADAPTER_LOOKS, LEAST_ADAPTER_STEPS)) if max_steps > 0 else asked
