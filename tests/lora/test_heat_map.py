"""The adapter as a picture."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from lorawatch.lora.heat_map import HeatMap, describe, heat_map, heat_svg, heat_text
from lorawatch.records import AdaptedModule, AdapterReading

SVG = "{http://www.w3.org/2000/svg}"


def reading(layers: int = 3, **extra: AdaptedModule) -> AdapterReading:
    modules = [
        AdaptedModule(
            f"model.layers.{layer}.{name}", 8, 2.0, norm_a=1.0, norm_b=size * layer, update=size * layer, base=10.0
        )
        for layer in range(layers)
        for name, size in (("self_attn.q_proj", 1.0), ("mlp.up_proj", 2.0))
    ]
    return AdapterReading(120, modules + list(extra.values()))


def drawn(given: AdapterReading, **options: int) -> HeatMap:
    found = heat_map(given, **options)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_rows_are_names_and_columns_are_layers() -> None:
    shown = drawn(reading())
    assert shown.what == "update/base"
    assert shown.rows == ["self_attn.q_proj", "mlp.up_proj"]
    assert shown.layers == ["0", "1", "2"]
    values = [[None if cell is None else cell.value for cell in row] for row in shown.cells]
    assert values == [[0.0, 0.1, 0.2], [0.0, 0.2, 0.4]]
    assert shown.largest == 0.4


def test_text_has_a_line_a_name_with_a_block_a_layer() -> None:
    lines = heat_text(drawn(reading()))
    assert lines[0].startswith("Adapter at step 120")
    assert lines[1] == "self_attn.q_proj ·▃▅"
    assert lines[2] == "     mlp.up_proj ·▅█"
    assert "layers 0 to 2" in lines[3]
    assert "up to 0.4" in lines[4]


def test_the_norm_of_b_stands_in_where_the_weights_are_not_known() -> None:
    modules = [AdaptedModule(f"layers.{layer}.fc", 4, 1.0, norm_a=1.0, norm_b=3.0) for layer in range(2)]
    shown = drawn(AdapterReading(1, modules))
    assert shown.what == "norm_b"
    assert shown.largest == 3.0


def test_a_broken_module_is_marked_in_both() -> None:
    broken = AdaptedModule("model.layers.1.mlp.down_proj", 8, 2.0, finite=False)
    shown = drawn(reading(broken=broken))
    assert any("!" in line and "down_proj" in line for line in heat_text(shown))
    assert "NaN or infinity" in heat_text(shown)[-1]
    assert "NaN or infinity" in describe(shown)
    assert "down_proj, layer 1: NaN or infinity" in heat_svg(shown)


def test_what_is_in_no_layer_stands_first() -> None:
    shown = drawn(reading(head=AdaptedModule("lm_head", 8, 2.0, norm_a=1.0, norm_b=1.0, update=1.0, base=10.0)))
    assert shown.layers == ["", "0", "1", "2"]
    assert "lm_head" in shown.rows
    assert "in no layer" in heat_text(shown)[-2]


def test_experts_of_a_layer_share_a_cell_that_shows_the_largest() -> None:
    modules = [
        AdaptedModule(f"model.layers.0.mlp.experts.{one}.up_proj", 8, 2.0, norm_b=1.0, update=float(one), base=10.0)
        for one in range(4)
    ]
    shown = drawn(AdapterReading(1, modules))
    assert shown.rows == ["experts.*.up_proj"]
    cell = shown.cells[0][0]
    assert cell is not None
    assert cell.value == 0.3


def test_layers_beyond_the_width_share_columns() -> None:
    shown = drawn(reading(layers=10), columns=4)
    assert shown.layers == ["0-2", "3-5", "6-8", "9"]
    assert all(len(row) == 4 for row in shown.cells)


def test_names_that_end_alike_are_told_apart() -> None:
    modules = [
        AdaptedModule(f"{side}.block.0.attn.q_proj", 8, 2.0, norm_b=1.0) for side in ("model.encoder", "model.decoder")
    ]
    assert drawn(AdapterReading(1, modules)).rows == ["encoder.block.*.attn.q_proj", "decoder.block.*.attn.q_proj"]


def test_the_svg_is_sound_xml_with_a_title_and_a_tooltip_a_cell() -> None:
    root = ET.fromstring(heat_svg(drawn(reading())))  # noqa: S314
    assert root.get("role") == "img"
    labels = str(root.get("aria-labelledby")).split()
    assert [
        root.find(f"{SVG}{tag}[@id='{one}']") is not None for tag, one in zip(("title", "desc"), labels, strict=True)
    ]
    tips = [one.findtext(f"{SVG}title") for one in root.iter(f"{SVG}rect")]
    assert "mlp.up_proj, layer 2: 0.4" in tips
    assert sum(tip is not None for tip in tips) == 6


def test_hostile_names_inject_nothing() -> None:
    name = 'x.0.</text><script>alert(1)</script>"\x1b[31m\x00'
    shown = drawn(AdapterReading(1, [AdaptedModule(name, 8, 2.0, norm_b=1.0)]))
    svg = heat_svg(shown, label_id='a"b')
    assert "<script" not in svg
    ET.fromstring(svg)  # noqa: S314
    assert all(character.isprintable() for line in heat_text(shown) for character in line)


def test_many_names_are_cut_and_counted() -> None:
    modules = [AdaptedModule(f"layers.0.part{one}", 4, 1.0, norm_b=1.0) for one in range(50)]
    shown = drawn(AdapterReading(1, modules))
    assert shown.hidden == 10
    assert "and 10 more names" in heat_svg(shown)


def test_the_largest_reading_stays_small() -> None:
    modules = [
        AdaptedModule(f"model.layers.{layer}.part{one}", 8, 2.0, norm_b=1.0)
        for layer in range(128)
        for one in range(32)
    ]
    assert len(heat_svg(drawn(AdapterReading(1, modules)))) < 1_000_000


def test_an_empty_reading_gives_no_picture() -> None:
    assert heat_map(AdapterReading(1, [], left_out=3)) is None


def test_an_adapter_that_is_all_zero_is_drawn() -> None:
    modules = [AdaptedModule("layers.0.fc", 4, 1.0, norm_a=1.0, norm_b=0.0)]
    assert any(line.endswith("fc ·") for line in heat_text(drawn(AdapterReading(0, modules))))
