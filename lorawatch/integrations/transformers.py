"""``LoraWatchCallback``: lorawatch inside a Hugging Face Trainer, TRL's trainers among them.

It judges the same records by the same engine as ``lorawatch tail`` and ``check`` do, and writes them to
``lorawatch.jsonl``, from which those two then give the same findings.

It overrides only the events that it needs. Where the time of the steps goes is taken by a
:class:`~lorawatch.integrations.step_recorder.StepRecorder`, what the machine does by a thread that looks once a second.
A row is written down at once; that same thread judges it within the second, so that the loop does not wait for rules.
Where ``actions`` ask for it, the loop judges its rows itself, to act at the very step.
Order of the Trainer's events: ``_inner_training_loop`` and ``_maybe_log_save_evaluate`` of transformers 5.23
(``trainer.py``); an action taken at ``on_log`` is acted on at the end of that same step.
"""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from lorawatch.engine import Engine
from lorawatch.findings import Finding
from lorawatch.integrations.actions import DONE, SAME_ON_EVERY_RANK, checked_actions
from lorawatch.integrations.allocator import allocator_reader
from lorawatch.integrations.batch_sizes import BatchSizes
from lorawatch.integrations.journal import Journal
from lorawatch.integrations.judgement import Judgement
from lorawatch.integrations.machine_thread import MachineThread
from lorawatch.integrations.trainer_facts import collect
from lorawatch.integrations.trainer_rows import is_summary, row_of, rows_of
from lorawatch.lora.probes import ProbeSet
from lorawatch.machine.host import Progress
from lorawatch.merge import everything
from lorawatch.records import Event, FactUpdate, LifecycleEvent, MetricRow, Record
from lorawatch.registry import RuleSet
from lorawatch.render import engine_text, printable, run_heading
from lorawatch.run import Run
from lorawatch.settings import Settings, load_settings
from lorawatch.source import SourceError
from lorawatch.sources.lorawatch_jsonl import LorawatchSource

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    from lorawatch.integrations.model_looks import ModelLooks
    from lorawatch.integrations.speech import change_text, say
    from lorawatch.integrations.step_recorder import StepRecorder, calling_handler
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "LoraWatchCallback needs transformers 4.46 or newer beside lorawatch: pip install transformers", name=error.name
    ) from error

FILE_NAME = "lorawatch.jsonl"
Method = TypeVar("Method", bound=Callable[..., Any])


def _never_raising(method: Method) -> Method:
    """Guard an event: what fails in it is said once, ends the watch, and never reaches the training loop."""

    def guarded(self: LoraWatchCallback, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self._step_aside(error)
            return None

    return guarded  # type: ignore[return-value]


class LoraWatchCallback(TrainerCallback):
    """Watches a training run from inside: ``Trainer(..., callbacks=[LoraWatchCallback()])``.

    At the beginning of training it collects facts (training arguments, LoRA and model configuration, versions); then
    it judges each row that the Trainer logs, prints a finding as soon as it opens, and at the end a summary. World
    process zero does this; other processes do nothing, unless ``actions`` asks for something: then each judges the
    same rows silently, so that all of them stop or save at the same step.

    It never raises into training, synchronises a device, calls a collective, draws a random number or changes a log.

    Args:
        settings: What to judge by; as ``lorawatch.toml`` and ``LORAWATCH_*`` say when it is not given.
        config: A ``lorawatch.toml`` to read instead of the one in the working directory.
        actions: Severity (``info``, ``warning``, ``critical``) to what to do when a finding of it opens: ``stop``
            training, ``save`` a checkpoint, or ``none``. It also holds for severities above that have no entry of
            their own. Nothing is done by default.
        path: Where to write the records; ``lorawatch.jsonl`` in ``args.output_dir`` when it is not given. A further
            run into the same file begins a new run in it.
        quiet: Print no findings and no summary, only what keeps lorawatch from working.
        probes: What to ask the model every ``sample_steps`` steps; by default the prompts of the settings' ``probes``
            file, or else the first ones of the run's own data.

    Raises:
        ValueError: ``actions`` names no severity or no action; or both ``settings`` and ``config`` are given.
        SettingsError: A setting is wrong.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        config: str | os.PathLike[str] | None = None,
        actions: Mapping[str, str] | None = None,
        path: str | os.PathLike[str] | None = None,
        quiet: bool = False,
        probes: ProbeSet | None = None,
    ) -> None:
        if settings is not None and config is not None:
            raise ValueError("give LoraWatchCallback settings or config, not both")
        self.settings = settings or load_settings(None if config is None else Path(config))
        self.path = None if path is None else Path(path)
        self.quiet = quiet
        self.probes = probes
        self.actions = checked_actions(actions or {})
        self._rules = RuleSet(self.settings)
        self._judgement: Judgement | None = None
        self._recorder: StepRecorder | None = None
        self._machine: MachineThread | None = None
        self._looks: ModelLooks | None = None
        self._wanted: set[str] = set()
        # A crash within the second after a row must not hide what it showed. Weakly: nothing is kept alive for it.
        self._at_exit = partial(_judge_the_rest, weakref.ref(self))
        self._process = os.getpid()
        self._aside = False
        self._speaks = False
        self._several = False

    @property
    def engine(self) -> Engine | None:
        """The engine that judges the present run; None before training, and after lorawatch stepped aside."""
        return None if self._judgement is None else self._judgement.engine

    @_never_raising
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to watch: collect facts, and take up the history of a run that resumes."""
        self._finish_what_was_left()
        self._aside = False
        self._speaks = state.is_world_process_zero
        self._several = args.world_size > 1
        if not self._speaks and not self.actions:
            return
        if self._another_watches():
            say("lorawatch: two LoraWatchCallbacks watch this Trainer; the second one rests")
            return
        folder = Path(args.output_dir or ".")
        run = Run(folder.resolve().name or "run", str(folder))
        journal = Journal(self.path or folder / FILE_NAME) if self._speaks else None
        judgement = self._judgement = Judgement(Engine(run, self._rules.make()), journal, self._unwritable)
        facts = FactUpdate(collect(args, state, kwargs.get("model"), kwargs.get("train_dataloader")), "callback")
        now = time.time()
        if not state.global_step:
            self._take(LifecycleEvent("started", step=0, time=now), facts)
        else:
            self._relive(state, judgement)
            self._take(facts, LifecycleEvent("resumed", step=state.global_step, time=now))
        judgement.listen()
        if self._speaks and self.settings.model:
            tokenizer = kwargs.get("processing_class") or kwargs.get("tokenizer")  # transformers before 4.46's rename
            self._looks = ModelLooks(self.settings, self._note, self.probes)
            self._take(
                *self._looks.begin(
                    kwargs.get("model"),
                    tokenizer,
                    args,
                    train_dataloader=kwargs.get("train_dataloader"),
                    eval_dataloader=kwargs.get("eval_dataloader"),
                    max_steps=state.max_steps,
                )
            )
        if self._speaks and self.settings.machine:
            self._watch_machine(args, state.global_step, kwargs.get("train_dataloader"))
            self._process = os.getpid()
            atexit.register(self._at_exit)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the time: the data is there."""
        recorder = self._recorder  # the thread of the machine may step aside at any moment
        if recorder is not None:
            recorder.step_begins(state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the time: the passes are done."""
        recorder = self._recorder  # the thread of the machine may step aside at any moment
        if recorder is not None:
            recorder.optimizer_begins()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the time: the step is done. Act on what was found between rows."""
        recorder = self._recorder  # the thread of the machine may step aside at any moment
        if recorder is not None:
            recorder.optimizer_ends()
        if self.actions:
            judgement = self._judgement
            if judgement is not None and judgement.waits:  # what the thread brought in
                self._judge_or_step_aside()
            if self._wanted:
                self._act(control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Judge what the Trainer has just logged, say what it shows, and act where that was asked for."""
        judgement = self._judgement
        if judgement is None or not logs:
            return
        try:  # what _never_raising does, without handing the arguments on a second time: this is each row's way
            if is_summary(logs):
                self._end(state, logs)
                return
            row = row_of(state.global_step, logs, time.time())
            if row is None:
                return
            judgement.put(row)
            if self._looks is not None:
                self._look(kwargs.get("model"), state.global_step)
            if self._machine is None or self.actions or judgement.overdue:
                self._judge()
                if self._wanted:
                    self._act(control)
        except Exception as error:
            self._step_aside(error)

    @_never_raising
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note that an evaluation took place."""
        self._happened("evaluated", state)

    @_never_raising
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note that a checkpoint was written."""
        self._happened("saved", state)

    @_never_raising
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Print the summary; rows that are logged later, by ``trainer.evaluate()``, are still judged."""
        judgement = self._judgement
        if judgement is None:
            return
        self._judge()
        engine = judgement.engine
        if not engine.run.ended:
            self._end(state, {})
        if self._speaks and not self.quiet:
            say("\n".join([f"lorawatch: {run_heading(engine.run.name, engine.run)}", *engine_text(engine)]))
        judgement.close()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: the settings, never a run that is being watched."""
        return {name: self.__dict__[name] for name in ("settings", "path", "quiet", "actions", "probes")}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        names = {severity.label: action for severity, action in kept["actions"].items()}
        self.__init__(  # type: ignore[misc]
            kept["settings"], actions=names, path=kept["path"], quiet=kept["quiet"], probes=kept["probes"]
        )

    def _take(self, *records: Record) -> None:
        """Write records down, and judge them where no thread does."""
        judgement = self._judgement
        if judgement is not None:
            judgement.put(*records)
            if self._machine is None:
                self._judge()

    def _look(self, model: Any, step: int) -> None:
        """Look at the model, where that is due."""
        looks, judgement, recorder, began = self._looks, self._judgement, self._recorder, time.perf_counter()
        seen = looks.after_log(model, step) if looks is not None else []
        if seen and judgement is not None:
            judgement.put(*seen)
        if recorder is not None:
            recorder.leave_out(time.perf_counter() - began)

    def _judge(self) -> None:
        """Judge what waits; say what it changed, and note what is to be done about it."""
        judgement = self._judgement
        for change, finding in judgement.judge() if judgement is not None else ():
            action = self._action(finding) if change in ("opened", "reopened", "escalated") else "none"
            if action != "none":
                self._wanted.add(action)
            if self._speaks and not self.quiet:
                text = change_text(change, finding)
                if action != "none":
                    text += f"\n    done:  {DONE[action]}, as actions asks for {finding.severity.label} findings"
                if text:
                    say(text)

    def _judge_or_step_aside(self) -> None:
        try:
            self._judge()
        except Exception as error:
            self._step_aside(error)

    def _judge_beside(self) -> None:
        """Judge in the thread beside the loop; where actions are asked for, the loop must, to act at the very step."""
        if not self.actions:
            self._judge()

    def _another_watches(self) -> bool:
        others = getattr(calling_handler(), "callbacks", ())
        return any(isinstance(one, LoraWatchCallback) and one is not self and one._judgement for one in others)

    def _watch_machine(self, args: TrainingArguments, step: int, train_dataloader: Any) -> None:
        sizes = BatchSizes(args.gradient_accumulation_steps)
        recorder = StepRecorder(self, sizes, allocator_reader(), self._step_aside)
        if recorder.attach(step):
            sizes.attach(train_dataloader)
            self._recorder = recorder
        self._machine = MachineThread(
            Path(args.output_dir or "."), take=lambda readings: self._take(*readings), timings=recorder.timings,
            judge=self._judge_beside, progress=self._progress, say=self._note, left=self._stop_machine,
            fail=self._step_aside,
        )  # fmt: skip
        self._machine.start()

    def _progress(self) -> Progress | None:
        """How far training is, for the thread of the machine; None when it was left without an end."""
        recorder = self._recorder
        if recorder is None:
            return Progress()
        return Progress(recorder.idle(), recorder.phase, recorder.step) if recorder.in_training() else None

    def _note(self, problem: str) -> None:
        if self._speaks and not self.quiet:
            say(f"lorawatch: {printable(problem)}")

    def _unwritable(self, path: Path, error: OSError) -> None:
        say(
            f"lorawatch: {printable(path)} cannot be written ({error.strerror or error}): "
            "this run goes on being judged, but is not recorded"
        )

    def _relive(self, state: TrainerState, judgement: Judgement) -> None:
        """Judge silently what came before the resume: from the file, or else from what the checkpoint remembers.

        With actions in several processes each of them has to judge the same history, so it is the checkpoint's: the
        file may be within reach of the first process only.
        """
        path = None if self._several and self.actions else judgement.path
        skipped = None if path is None else _last_run(path)
        if path is None or skipped is None:
            judgement.put(LifecycleEvent("started", step=0), *rows_of(state.log_history))
            judgement.judge()
            return
        for record in islice(everything(LorawatchSource(path)), skipped, None):
            judgement.engine.feed(record)

    def _happened(self, event: Event, state: TrainerState) -> None:
        if self._judgement is not None:
            self._take(LifecycleEvent(event, step=state.global_step, time=time.time()))

    def _end(self, state: TrainerState, logs: Mapping[str, Any]) -> None:
        self._stop_machine(state.global_step)
        numbers = ", ".join(f"{name} {value:g}" for name, value in logs.items() if isinstance(value, int | float))
        self._take(LifecycleEvent("ended", step=state.global_step, time=time.time(), detail=numbers[:300]))
        atexit.unregister(self._at_exit)

    def _act(self, control: TrainerControl) -> None:
        """Do what was noted; only the training loop may."""
        wanted, self._wanted = self._wanted, set()
        if "stop" in wanted:
            control.should_training_stop = True
        if "save" in wanted:
            control.should_save = True

    def _action(self, finding: Finding) -> str:
        if self._several and finding.rule.partition("/")[0] not in SAME_ON_EVERY_RANK:
            return "none"  # the processes could disagree, and one that stops alone leaves the others hanging
        levels = [severity for severity in self.actions if severity <= finding.severity]
        return self.actions[max(levels)] if levels else "none"

    def _stop_machine(self, step: int | None = None) -> None:
        """Look at the machine no longer; hand on what was timed, up to ``step`` where training came to its end."""
        machine, self._machine = self._machine, None
        if machine is not None:
            machine.stop()
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            if step is not None:
                recorder.training_ends(step)
            self._take(*recorder.timings())
            recorder.detach()

    def _finish_what_was_left(self) -> None:
        """Of a training that was left without its end: judge what still waits, and let go of it."""
        if self._judgement is not None:
            with suppress(Exception):
                self._stop_machine()
                self._judge()
        self._leave()

    def _leave(self) -> None:
        """Let go of the run that is being watched."""
        judgement, self._judgement, self._looks = self._judgement, None, None
        self._stop_machine()
        atexit.unregister(self._at_exit)
        self._wanted = set()
        if judgement is not None:
            judgement.close(for_good=True)

    def _step_aside(self, error: Exception) -> None:
        try:
            if self._aside:
                return  # the loop and the thread may both fail
            self._aside, judgement = True, self._judgement
            step = "" if judgement is None else f" at step {judgement.engine.run.step}"
            self._leave()
            if self._speaks:
                say(
                    f"lorawatch: failed{step} and steps aside, training goes on: "
                    f"{type(error).__name__}: {printable(error)}"
                )
        except Exception:  # noqa: S110  (nothing is left that could be told to anyone)
            pass


def _judge_the_rest(reference: weakref.ref[LoraWatchCallback]) -> None:
    callback = reference()
    if callback is None or callback._process != os.getpid():  # a child that was forked off has nothing to say
        return
    with suppress(Exception):
        if callback._machine is not None:
            callback._machine.stop()  # or it would be killed in the middle of a sentence
        callback._judge()


def _last_run(path: Path) -> int | None:
    """How many records stand before the last run of a ``lorawatch.jsonl``; None when that run holds no rows."""
    first, rows = 0, 0
    try:
        for index, record in enumerate(everything(LorawatchSource(path))):
            if isinstance(record, MetricRow):
                rows += 1
            elif isinstance(record, LifecycleEvent) and record.event == "started":
                first, rows = index, 0
    except SourceError:
        return None  # writing to it will fail too, and say so
    return first if rows else None
