"""Generic tools that know nothing of speech: files that appear whole, and files read with one clear error."""
