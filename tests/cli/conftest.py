from tests.shared import home as home
