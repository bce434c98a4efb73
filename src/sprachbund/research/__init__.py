"""The five published systems beside their baselines. Nothing but the command line imports this."""

from pathlib import Path


def size_file(recipe: str, size: str) -> Path:
    """The file with the settings of a size of a recipe, which stands in the folder of its system.

    Args:
        recipe: name of the system's package.
        size: tiny, small or paper.
    """
    return Path(__file__).parent / recipe / f"{size}.toml"
