"""What the page says of the model: sample generations, the adapter's weights, and the labels of the first rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lorawatch.lora.heat_map import heat_map, heat_svg
from lorawatch.records import AdaptedModule, AdapterReading, LabelAudit, LabelledPiece, ModelTree, Sample
from lorawatch.render import number
from lorawatch.report.content import Content, Generation, Generations
from lorawatch.report.limits import Limits
from lorawatch.report.words import escaped, escaped_block


def samples_table(found: Generations | None, limits: Limits) -> str:
    """Prompts, and what base and tuned model reply; "" where there are no samples."""
    if found is None:
        return ""
    twice = found.first_step != found.last_step
    heads = ["Prompt", "Base model", *([f"Step {found.first_step:,}"] if twice else []), f"Step {found.last_step:,}"]
    rows = found.rows[: limits.samples]
    body = "".join(_generation(row, heads, limits, twice=twice) for row in rows)
    more = len(found.rows) - len(rows)
    told = generations_words(found)
    return (
        f'<div class="card scroll"><table class="samples stack"><caption>{escaped(told, 600)}</caption><thead><tr>'
        + "".join(f'<th scope="col">{head}</th>' for head in heads)
        + f"</tr></thead><tbody>{body}</tbody></table>{f'<p>and {more} more prompts</p>' if more > 0 else ''}</div>"
    )


def generations_words(found: Generations) -> str:
    """One sentence on how the samples were made and what was measured on them."""
    reading = found.reading
    words = f"Greedy replies of at most {reading.max_new_tokens:,} tokens. "
    parts = []
    if reading.kl is not None:
        parts.append(f"{number(reading.kl)} nats a token from the base model on task prompts")
    if reading.perplexity is not None:
        base = "" if reading.base_perplexity is None else f" ({number(reading.base_perplexity)} without the adapter)"
        parts.append(f"perplexity of general text {number(reading.perplexity)}{base}")
    return words + (f"At the last reading: {'; '.join(parts)}." if parts else "")


def _generation(row: Generation, heads: Sequence[str], limits: Limits, *, twice: bool) -> str:
    replies = [row.base, *([row.first] if twice else []), row.last]
    prompt = f'<div class="reply">{escaped_block(row.prompt, limits.characters // 2)}</div>'
    cells = [f'<td class="prompt" data-h="{heads[0]}">{prompt}<div class="meta">{escaped(row.probe)}</div></td>']
    for head, sample in zip(heads[1:], replies, strict=True):
        cells.append(f'<td data-h="{head}">{_reply(sample, limits)}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _reply(sample: Sample | None, limits: Limits) -> str:
    if sample is None:
        return '<span class="soft">–</span>'
    text = escaped_block(sample.output, limits.characters)
    return (
        (f'<div class="reply">{text}</div>' if text.strip() else '<div class="soft">empty</div>')
        + f'<div class="meta">{escaped(sample_words(sample))}</div>'
    )  # fmt: skip


def sample_words(sample: Sample) -> str:
    """How a reply ended, how long it is, and whether it is right."""
    parts = [f"{sample.tokens:,} tokens", "ended" if sample.ended else "cut at the limit"]
    if sample.right is not None:
        parts.append("right" if sample.right else "wrong")
    return ", ".join(parts)


def adapter_cards(content: Content, limits: Limits) -> str:
    """The modules that the adapter takes, and its weights as a heat map; "" where nothing is known of them."""
    out: list[str] = []
    if content.model is not None:
        out.append(f'<div class="card">{_model(content.model)}</div>')
    reading = content.adapter
    if reading is not None:
        out.append(
            f'<div class="card heat"><p>{escaped(adapter_words(reading), 600)}</p>{_heat_map(reading, limits)}</div>'
        )
    return "\n".join(out)


def model_words(model: ModelTree) -> str:
    """The model's size and what of it is trained, in one sentence."""
    words = f"{model.parameters:,} parameters"
    if model.layers:
        words += f" in {model.layers} layers"
    if model.trainable is not None:
        share = f" ({model.trainable / model.parameters:.2%})" if model.parameters else ""
        words += f"; the adapter trains {model.trainable:,}{share}"
    return words + "."


def _model(model: ModelTree) -> str:
    targets = [("target_modules", model.targets), ("modules_to_save", model.saved)]
    rows = "".join(
        f'<tr><td>{name}</td><th scope="row"><code>{escaped(entry, 120)}</code></th><td class="n">{count:,}'
        f"{'' if count else ' – matches nothing'}</td></tr>"
        for name, entries in targets
        for entry, count in list(entries.items())[:60]
    )
    heads = '<th scope="col">Parameter</th><th scope="col">Entry</th><th scope="col" class="n">Modules it matches</th>'
    table = (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>' if rows else ""
    )
    return f"<p>{escaped(model_words(model))}</p>{table}"


def adapter_words(reading: AdapterReading) -> str:
    """What the last look at the adapter's weights says, in one or two sentences."""
    modules = reading.modules
    words = f"{len(modules):,} adapted modules at step {reading.step:,} ({reading.origin})."
    ranked = [one for one in modules if one.update is not None and one.base]
    if ranked:
        largest = max(ranked, key=_share)
        words += f" Largest update: {_share(largest):.2%} of the base weight, in {largest.name}."
    broken = sum(not one.finite for one in modules)
    if broken:
        words += f" {broken} hold a NaN or an infinity."
    if reading.left_out:
        words += f" {reading.left_out:,} are left out{': ' + reading.why_left_out if reading.why_left_out else ''}."
    return words


def _share(one: AdaptedModule) -> float:
    return (one.update or 0.0) / one.base if one.base else 0.0


def _heat_map(reading: AdapterReading, limits: Limits) -> str:
    drawing = _drawn_map(reading, limits.heat_map)
    if drawing:
        return f'<div class="scroll" tabindex="0" role="region" aria-label="Heat map of the adapter">{drawing}</div>'
    modules = sorted(reading.modules, key=_share, reverse=True)
    rows = "".join(
        f'<tr><th scope="row"><code>{escaped(one.name, 160)}</code></th>'
        + "".join(f'<td class="n">{escaped(words)}</td>' for words in module_cells(one))
        + "</tr>"
        for one in modules[: limits.modules]
    )
    heads = "".join(f'<th scope="col"{" class=n" if at else ""}>{head}</th>' for at, head in enumerate(MODULE_HEADS))
    more = len(modules) - limits.modules
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
        f"{f'<p>and {more:,} more</p>' if more > 0 else ''}</div>"
    )


MODULE_HEADS = ("Module", "Rank", "Norm of B", "Update", "Update / base", "Effective rank")


def module_cells(one: AdaptedModule) -> tuple[str, ...]:
    """An adapted module in words, in the order of :data:`MODULE_HEADS`, without the name."""

    def told(thing: float | None) -> str:
        return ("not finite" if not one.finite else "–") if thing is None else number(thing)

    share = f"{_share(one):.2%}" if one.update is not None and one.base else "–"
    return (str(one.rank), told(one.norm_b), told(one.update), share, told(one.effective_rank))


def _drawn_map(reading: AdapterReading, most: int) -> str:
    """The heat map of modules and layers, of as many columns as fit into ``most`` bytes; "" where none does."""
    for columns in (256, 128, 64, 32):
        shown = heat_map(reading, columns=columns)
        drawing = "" if shown is None or not most else heat_svg(shown)
        if len(drawing) <= most:
            return drawing
    return ""


def labels_card(audit: LabelAudit | None) -> str:
    """What the label audit counted, and three rows; "" where there was none."""
    if audit is None:
        return ""
    rows = "".join(
        f'<h4>Row {index}</h4><div class="row" role="group" aria-label="Row {index}">{_pieces(row)}</div>'
        for index, row in enumerate(audit.examples[:3], 1)
    )
    counts = "".join(
        f"<div><dt>{escaped(name)}</dt><dd>{escaped(words, 80)}</dd></div>" for name, words in audit_counts(audit)
    )
    legend = '<p class="legend"><span><mark>trained on</mark></span> <span>masked: not part of the loss</span></p>'
    return f'<div class="card"><dl class="evidence">{counts}</dl>{legend + rows if rows else ""}</div>'


def _pieces(row: Iterable[LabelledPiece]) -> str:
    out, left = [], 3_000
    for piece in list(row)[:200]:
        if left <= 0:
            out.append(" …")
            break
        text = escaped_block(piece.text, min(left, 1_500))
        left -= len(piece.text) + 1
        out.append(f"<mark>{text}</mark>" if piece.trained else text)
    return "".join(out)


def audit_counts(audit: LabelAudit) -> list[tuple[str, str]]:
    """What the label audit counted, as name and words; what is not wrong in any row is left out."""
    share = f" ({audit.trained / audit.tokens:.0%})" if audit.tokens else ""
    found = [
        ("rows looked at", f"{audit.rows:,}"),
        ("tokens", f"{audit.tokens:,}"),
        ("tokens trained on", f"{audit.trained:,}{share}"),
        ("rows without a trained token", f"{audit.untrained_rows:,}"),
        ("rows cut at max_length", f"{audit.truncated_rows:,}"),
        ("rows whose end is not trained", f"{audit.unsupervised_ends:,} of {audit.ended_rows:,}"),
    ]
    for name, count in (
        ("rows with two BOS tokens", audit.double_bos_rows),
        ("rows that repeat another", audit.duplicate_rows),
        ("rows in a foreign chat template", audit.foreign_template_rows),
        ("rows whose prompt is trained on", audit.prompt_trained_rows),
    ):
        if count:
            found.append((name, f"{count:,}"))
    if audit.marker:
        found.append(("end token", audit.marker))
    if audit.pad_is_eos is not None:
        found.append(("padding is the end token", "yes" if audit.pad_is_eos else "no"))
    if audit.max_length is not None:
        found.append(("max_length", f"{audit.max_length:,}"))
    if audit.packed:
        found.append(("packed", "yes"))
    return found
