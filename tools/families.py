"""Writes docs/families.md: what each family of models does, found by doing it with tiny random models.

`python -m tools.families` does everything and takes an hour; with `--quick` only the first columns are found anew, the
others stay as they are on the page; names of rows restrict it to those.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "families.md"
sys.path.insert(0, str(ROOT / "tests"))

from families import FAMILY  # noqa: E402  (the tests' folder is no package)
from family_checks import QUICK, SLOW, Cells, quick, slow  # noqa: E402

HEAD = """# Families of models

<!-- Written by `python -m tools.families`; tests/models/test_family_page.py compares it with what it finds. -->

What tunesmith does with each family, found by doing it: a tiny random model of the family is made, loaded, trained,
stopped and resumed, evaluated, merged and exported. To see what it says of your model: `tunesmith check RECIPE`.

- **loaded**: of an image-text checkpoint only the text half is loaded, quantized, adapted, counted and exported.
- **engine**: *fused* is the hand-written decoder; *autograd* runs transformers' own modules and is slower.
- **loss**: in float32, in 16 and 4 bits, a batch's loss is transformers' own to 1e-3, and the loaded bytes are those
  planned.
- **train**, **resume**: the loss falls; stopped and resumed, the adapter is the same bytes.
- **evaluate**, **replies**: the same replies one by one and in a batch, and those of transformers. Chat and the server
  use them too.
- **adapter, merge**: PEFT reads the adapter on the model that a user loads, with our logits to 1e-3; so does
  transformers with the merged folder.
- **GGUF**, **GGUF LoRA**: llama.cpp says transformers' greedy tokens, from the merged model and from the base with the
  adapter beside it.

The adapter covers every linear layer of the decoder and every expert, but neither the head nor a router. Over an
image-text checkpoint it has the names of the whole checkpoint: load that with the class in the last column, then
`PeftModel.from_pretrained(model, "RUN/adapter")`. What is merged is the text model alone, for AutoModelForCausalLM.

"""


def read_page() -> dict[str, Cells]:
    """The page's cells by row, empty where there is no page."""
    if not PAGE.exists():
        return {}
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    if not rows:
        return {}
    head, titles = rows[0], {family.title: name for name, family in FAMILY.items()}
    return {titles[row[0]]: dict(zip(head[1:], row[1:], strict=True)) for row in rows[1:] if row[0] in titles}


def page(found: dict[str, Cells]) -> str:
    """The page's text."""
    columns = ["type", *QUICK, *SLOW, "loads with"]
    lines = [f"| family | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|"]
    for name, family in FAMILY.items():
        cells = found.get(name, {})
        lines.append(f"| {family.title} | {' | '.join(cells.get(each) or '?' for each in columns)} |")
    return HEAD + "\n".join(lines) + "\n"


def cells_of(name: str, known: Cells, *, only_quick: bool) -> Cells:
    """A row found anew; with `only_quick` the slow columns are those known."""
    from tunesmith.models.architecture import read_architecture

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        made = {**known, **quick(name, folder)}
        made |= {"type": FAMILY[name].kind, "loads with": read_architecture(folder, name).loader}
        return made if only_quick else {**made, **slow(name, folder, Path(scratch) / "slow")}


def main() -> None:
    """Writes the page."""
    names = [word for word in sys.argv[1:] if not word.startswith("-")] or list(FAMILY)
    found = read_page()
    for name in names:
        found[name] = cells_of(name, found.get(name, {}), only_quick="--quick" in sys.argv)
        PAGE.write_text(page(found), encoding="utf-8")
        sys.stdout.write(f"{name}: {found[name]}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
