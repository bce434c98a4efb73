"""Writes the description of the HTTP routes: python -m sprachbund.serving.openapi docs/openapi.json"""

import json
import sys
from pathlib import Path

from sprachbund.serving.app import create_app
from sprachbund.serving.settings import Settings
from sprachbund.util.files import write_text


def described() -> str:
    """The OpenAPI file of the service, as it stands in docs/openapi.json."""
    schema = create_app(Settings(preload=False)).openapi()
    return json.dumps(schema, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), described())
