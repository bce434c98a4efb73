"""`python -m tests.training.unit_run RECIPE.json DIRECTORY`: the run that the test of several processes starts."""

import sys
from pathlib import Path

from sprachbund.training.unit_translator import UnitTranslatorRecipe, run

if __name__ == "__main__":
    run(UnitTranslatorRecipe.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
