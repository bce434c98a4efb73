"""Learning rates of the transfer study: what each gave on dev, and the gaps with one for each start, or one for all.

`recipes/research/transfer_rates.toml` says what was expected. A study of one rate, `--one`, has the same cells.
Run: python -m benchmarks.transfer_rates runs/rates --out docs/results/transfer_rates.json
"""

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.rows import show

from sprachbund.research.encoder_transfer.options import EncoderTransferRecipe
from sprachbund.research.encoder_transfer.rates import rate_rows
from sprachbund.research.encoder_transfer.report import cell_rows, make_report
from sprachbund.research.table_file import keep_table
from sprachbund.research.tasks import read_study


def main() -> None:
    """Write the table of rates, and that of gaps beside it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="folder of the study that tried rates")
    parser.add_argument("--one", type=Path, help="folder of the study with one rate, to stand beside it")
    parser.add_argument("--out", type=Path, required=True, help="file with the table of rates")
    given = parser.parse_args()
    recipe = EncoderTransferRecipe.model_validate(read_study(given.study))
    tried = rate_rows(recipe, given.study)
    keep_table(given.out, recipe, {"rows": tried})
    gaps = rows_of(recipe, given.study, "of each start")
    if given.one is not None:
        one = EncoderTransferRecipe.model_validate(read_study(given.one))
        gaps += rows_of(one, given.one, f"{one.tuning.learning_rate:g} for all")
    keep_table(given.out.with_stem(f"{given.out.stem}_gaps"), recipe, {"rows": gaps})
    show(tried)
    show(gaps)


def rows_of(recipe: EncoderTransferRecipe, study: Path, rates: str) -> list[dict[str, Any]]:
    """The gap of every cell of a study, and the mean over languages of each scale."""
    cells = cell_rows(make_report(recipe.grid, study))
    rows = [{"learning rate": rates, **cell} for cell in cells]
    for hours in recipe.grid.hours:
        own = [cell for cell in cells if cell["hours"] == hours]
        means = {key: round(mean(cell[key] for cell in own), 2) for key in (*recipe.grid.starts, "gap")}
        empty = dict.fromkeys(cells[0], "")
        rows.append({"learning rate": rates, **empty, "language": "mean", "hours": hours, **means})
    return rows


if __name__ == "__main__":
    main()
