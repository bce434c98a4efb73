"""Code-switched speech translation with experts by language (arXiv 2511.10670)."""
