"""The page: complete in itself, bounded, readable without a script, and closed to whatever a log may hold."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("pandas")

from markdown_it import MarkdownIt

from lorawatch.findings import Adjustment, Finding, Severity
from lorawatch.records import (
    AdaptedModule,
    AdapterReading,
    Card,
    FactUpdate,
    GpuReading,
    LabelAudit,
    LabelledPiece,
    LifecycleEvent,
    MetricRow,
    ModelTree,
    Record,
    Sample,
    SampleReading,
)
from lorawatch.registry import RuleSet
from lorawatch.report.content import Content, gather
from lorawatch.report.limits import PAGE_BYTES
from lorawatch.report.markdown import markdown
from lorawatch.report.page import page
from lorawatch.report.panels import mark
from lorawatch.report.words import config_line, escaped, escaped_block, marked_down
from lorawatch.settings import Settings
from lorawatch.watch import judge
from tests.report.runs import PROJECTIONS, adapter, diverging, rows, told, write

RULES = RuleSet(Settings())
FAMILIES = ("loss", "eval", "mem", "sig", "grad", "lr", "perf", "host", "hw")
"""Rules whose findings in the told run are known here."""
WATCHED = RuleSet(Settings(select=FAMILIES))
RUNS = Path(__file__).parent.parent / "runs"
VOID = {"meta", "link", "br"}
TAGS = {
    "html", "head", "meta", "title", "link", "style", "body", "a", "header", "nav", "main", "section", "article",
    "footer", "figure", "figcaption", "h1", "h2", "h3", "h4", "p", "b", "br", "code", "span", "div", "ul", "ol", "li",
    "dl", "dt", "dd", "table", "caption", "thead", "tbody", "tr", "th", "td", "mark", "details", "summary",
    "svg", "g", "path", "line", "rect", "circle", "text", "desc",
}  # fmt: skip
EVIL = [
    "</style><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onmouseover='alert(1)", "<!--", "]]>",
    "</svg><a href=javascript:alert(1)>x</a>", "&lt;b&gt;&#60;i&#62;", "\x1b[31mred\x07\x00", "\u202eevil\u2066",
    "|a|b|\n# x\n<b>", "[x](http://evil.example)", "![x](//evil.example/p.png)", "@everyone #1 www.evil.example",
    "`a`</code>", "https://evil.example/?q=1", "\ud800", "{{7*7}} ${7*7}",
]  # fmt: skip


class Page(HTMLParser):
    """What a browser would see of a page: its elements, their attributes, its text; wrong nesting is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.style = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute stands twice in <{tag}>"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.style += data
        else:
            self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def content(folder: Path, rules: RuleSet = RULES) -> Content:
    [watch] = judge([folder], rules).runs
    return gather(watch, rules)


def hostile() -> Iterator[Record]:
    """A run in which everything that a log can name is an attack."""
    everything = " ".join(EVIL)
    yield LifecycleEvent("started", 0, 1.7e9, everything)
    names = {f"fact {index} {evil}": evil for index, evil in enumerate(EVIL)}
    values = {"learning_rate": 2e-3, "target_modules": EVIL, "nested": {everything: [everything]}, "r": everything}
    yield FactUpdate(names | values, everything)
    yield FactUpdate({"evil_version": everything, "trainer_class": everything, "model_name_or_path": EVIL[0]}, EVIL[1])
    yield ModelTree([], dict.fromkeys(EVIL, 0), {everything: 1}, 10, 1, 1)
    yield LabelAudit(
        4,
        10,
        5,
        marker=everything,
        examples=[[LabelledPiece(evil, bool(index % 2)) for index, evil in enumerate(EVIL)]],
    )
    for index, loss in enumerate(diverging(), 1):
        evil = {f"{evil}{index % 3}": float(index) for evil in EVIL} | {f"eval_{EVIL[0]}_loss": loss}
        yield MetricRow(
            index * 5, {"loss": loss, "grad_norm": 1.0, "learning_rate": 1e-3} | (evil if index > 90 else {})
        )
        if index % 40 == 0:
            yield GpuReading(1.7e9, [Card(index, everything, everything, memory_used=1 << 30, memory_total=2 << 30)])
            modules = [AdaptedModule(evil, 4, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 2.0) for evil in EVIL]
            modules += adapter(1, name="<script>.{}.{}").modules
            yield AdapterReading(index * 5, modules, 3, everything, origin=everything)
            samples = [Sample(evil, f"{evil}\n{everything}", False, 3) for evil in EVIL]
            yield SampleReading(index * 5, samples, samples, kl=0.1, max_new_tokens=8, origin=everything)


def encodable(records: Iterator[Record]) -> list[Record]:
    """Without lone surrogates, which no file can hold."""
    EVIL[:] = [evil for evil in EVIL if evil.isascii() or evil.encode("utf-8", "ignore").decode() == evil]
    return list(records)


@pytest.fixture(scope="module")
def attack(tmp_path_factory: pytest.TempPathFactory) -> Content:
    return content(write(tmp_path_factory.mktemp("attack") / "run", encodable(hostile())))


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Content:
    return content(write(tmp_path_factory.mktemp("rich") / "run", told()), WATCHED)


def closed(text: str) -> Page:
    """The page, after a look at everything that could act or ask for something."""
    seen = Page(text)
    assert {tag for tag, _ in seen.elements} <= TAGS
    for tag, attributes in seen.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("style", "src", "srcset", "action", "formaction", "xlink:href", "srcdoc", "background")
            if name == "href":
                assert value == "data:," if tag == "link" else value.startswith("#")
            assert "url(" not in value
    assert "url(" not in seen.style
    assert "@import" not in seen.style
    assert not any(char in text for char in "\x1b\x07\x00\u202e\u2066")
    return seen


def test_nothing_of_a_hostile_log_acts_on_the_page(attack: Content) -> None:
    seen = closed(page(attack))
    assert "<script>alert(1)</script>" in seen.text  # it is shown, as what it is
    assert len(seen.all("style")) == 1


def test_nothing_of_a_hostile_log_acts_in_markdown(attack: Content) -> None:
    text = markdown(attack)
    rendered = MarkdownIt("commonmark").enable("table").enable("strikethrough").render(text)
    # What stands alone as HTML is the report's own; the rest was escaped.
    tags = set(re.findall(r"<(/?[a-zA-Z!][^\s>]*)", rendered))
    own = {"h2", "h3", "h4", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "code", "ul", "ol", "li",
           "details", "summary"}  # fmt: skip
    assert {tag.strip("/") for tag in tags} <= own | {"hr"}
    bare = re.sub(r"<code>.*?</code>", "", rendered, flags=re.DOTALL)
    assert "@everyone" not in bare
    assert not re.search(r"(?<!\\)https?://", re.sub(r"`[^`\n]*`", "", text))
    assert not any(char in text for char in "\x1b\x07\x00\u202e\u2066")
    for line in text.split("\n"):
        if line.startswith("| `fact"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 4


def test_the_policy_allows_the_page_s_own_style_and_nothing_else(rich: Content) -> None:
    seen = closed(page(rich))
    [policy] = [one["content"] for one in seen.all("meta") if one.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(seen.style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert "unsafe" not in policy
    assert "script-src" not in policy


@pytest.mark.parametrize("name", sorted(path.name for path in RUNS.iterdir() if (path / "lorawatch.jsonl").is_file()))
def test_every_recorded_run_makes_a_page_whose_links_lead_somewhere(name: str) -> None:
    seen = closed(page(content(RUNS / name)))
    ids = Counter(attributes["id"] for _, attributes in seen.elements if "id" in attributes)
    assert max(ids.values()) == 1
    for attributes in seen.all("a"):
        assert attributes["href"][1:] in ids
    for _, attributes in seen.elements:
        for one in attributes.get("aria-labelledby", "").split():
            assert one in ids
    assert [attributes["class"] for attributes in seen.all("figure")].count("panel main") == 1
    # Headings go down one at a time, from a single first one.
    levels = [int(tag[1]) for tag, _ in seen.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_a_picture_has_a_name_and_what_is_only_drawn_is_hidden_from_a_reader(rich: Content) -> None:
    seen = closed(page(rich))
    plots = [one for one in seen.all("svg") if one.get("class") == "plot"]
    assert len(plots) >= 8
    for plot in plots:
        assert plot["role"] == "group"
        assert re.match(r".+ over steps 1 to 600\. .+: \d+ values from ", plot["aria-label"])
    marks = [one for one in seen.all("a") if "mark" in one.get("class", "")]
    assert all(re.match(r"Finding \d+: .+, (critical|warning|info), step \d+", one["aria-label"]) for one in marks)


def test_findings_are_marked_where_they_happened_and_lead_to_their_incident(rich: Content) -> None:
    loss = next(panel for panel in rich.panels if panel.key == "loss")
    memory = next(panel for panel in rich.panels if panel.key == "memory")
    assert {finding.rule for _, finding in loss.marks} == {"loss/blow-up", "loss/diverging", "eval/overfit"}
    assert {number for number, _ in loss.marks} == {1}
    assert {finding.rule for _, finding in memory.marks} == {"mem/leak"}
    text = page(rich)
    for number, finding in [*loss.marks, *memory.marks]:
        first, last = rich.first_step, rich.last_step
        place = f"{(finding.opened_step - first) / (last - first):.2%}"
        assert re.search(rf'href="#f{number}" aria-label="Finding {number}: [^"]*step {finding.opened_step}">.*?'
                         rf'<line x1="{place}" x2="{place}"', text)  # fmt: skip


def test_a_finding_on_the_configuration_stands_at_no_step(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", rows([2.0 - index / 50 for index in range(30)]))
    found = content(folder, WATCHED)
    mark(found.panels, [(1, [finding("cfg/scaling"), finding("nothing/known")])], {})
    assert {panel.key: [one.rule for _, one in panel.marks] for panel in found.panels if panel.marks} == {
        "loss": ["nothing/known"]
    }


def finding(rule: str) -> Finding:
    return Finding(rule, "x", Severity.WARNING, "stable", "x", {}, 0, 0, 0)


def test_the_change_to_make_next_stands_first_and_can_be_copied(rich: Content) -> None:
    text = page(rich)
    assert rich.change is not None
    assert text.index("learning_rate: 6.7e-05") < text.index('id="findings"')
    assert '<code class="copy" tabindex="0">learning_rate: 6.7e-05</code>' in text
    assert "user-select:all" in text


def test_trained_and_masked_tokens_are_told_apart_without_colour(rich: Content) -> None:
    text = page(rich)
    assert "<mark>The capital of France is Paris. (0)&lt;|im_end|&gt;</mark>" in text
    assert re.search(r'mark::before[^}]*\{content:"\["\}', text)


def test_what_was_abstained_is_told_with_the_reason(rich: Content) -> None:
    seen = Page(page(rich))
    assert len(rich.abstained) >= 3
    for names, reason in rich.abstained:
        assert names in seen.text
        assert reason in seen.text
    assert rich.judged + sum(len(names.split(", ")) for names, _ in rich.abstained) == len(rich.rules)


def test_a_page_stays_small_whatever_the_log_holds(tmp_path: Path) -> None:
    long = '"<&>' * 1_000
    records: list[Record] = [LifecycleEvent("started", 0)]  # no line is longer than what is read of one
    records += [FactUpdate({f"fact_{part}_{index}": long for index in range(100)}, long) for part in range(20)]
    audit = [[LabelledPiece(long[:500], bool(index % 2)) for index in range(400)] for _ in range(3)]
    records.append(LabelAudit(64, 9, 9, examples=audit))
    for index in range(1, 1_501):
        values = {f"metric {number} {long[:50]}": float((index * 7919) % 997) for number in range(110)}
        loss = 2.0 + (index * 7919 % 997) / 100
        extra = {f"eval_{number}_loss": loss for number in range(8)} | {"reward": loss, "entropy": loss, "kl": loss}
        records.append(MetricRow(index, values | extra | {"loss": loss, "grad_norm": loss, "learning_rate": 1e-4}))
    samples = [Sample(f"{index}{long}"[:2_000], long[:4_000], True, 9) for index in range(60)]
    records += [SampleReading(step, samples, samples) for step in (10, 1_500)]
    modules = [AdaptedModule(f"{long[:80]}.{layer}.{name}", 8, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 2.0)
               for layer in range(400) for name in PROJECTIONS]  # fmt: skip
    records.append(AdapterReading(1_500, modules))
    told_of = content(write(tmp_path / "run", records), WATCHED)
    assert None not in (told_of.adapter, told_of.generations, told_of.labels)
    assert len(told_of.panels) > 5
    text = page(told_of)
    closed(text)
    assert len(text.encode()) < PAGE_BYTES
    assert len(markdown(told_of).encode()) < PAGE_BYTES / 4


def test_a_run_of_two_points_and_one_without_a_curve_make_a_page(tmp_path: Path) -> None:
    two = closed(page(content(write(tmp_path / "two", rows([2.0, 1.0])))))
    assert two.all("figure")
    one = closed(page(content(write(tmp_path / "one", [MetricRow(1, {"loss": 2.0})]))))
    assert not one.all("figure")
    assert "Too few values were logged for a curve." in one.text


@pytest.mark.parametrize(
    ("thing", "line"),
    [
        (Adjustment("learning_rate", 6.7e-05, ""), "learning_rate: 6.7e-05"),
        (Adjustment("learning_rate", 1e-05, ""), "learning_rate: 1.0e-05"),
        (Adjustment("bf16", True, ""), "bf16: true"),
        (Adjustment("target_modules", ["q_proj", "v_proj"], ""), 'target_modules: ["q_proj", "v_proj"]'),
        (Adjustment("lr_scheduler_type", "cosine", ""), "lr_scheduler_type: cosine"),
        (Adjustment("learning_rate", "a third of it", ""), ""),
        (Adjustment("", "look at the data", ""), ""),
    ],
)
def test_a_line_to_copy_is_what_yaml_reads_as_the_value(thing: Adjustment, line: str) -> None:
    import yaml

    assert config_line(thing) == line
    if line:
        assert yaml.safe_load(line) == {thing.parameter: thing.proposed}


def test_text_keeps_what_a_script_needs_and_loses_what_reorders_it() -> None:
    assert escaped("نمی\u200cخواهم") == "نمی\u200cخواهم"
    assert escaped("a\u202eb") == "a\N{REPLACEMENT CHARACTER}b"
    assert escaped_block("a\r\nb\tc\x07", 100) == "a\nb\tc\N{REPLACEMENT CHARACTER}"
    assert escaped("x" * 400) == "x" * 300 + "… (100 more characters)"
    assert marked_down("a\nb") == "a ↵ b"
    assert marked_down("\ud800") == "\N{REPLACEMENT CHARACTER}"
