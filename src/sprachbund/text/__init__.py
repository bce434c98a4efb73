"""Language tags, tokenizers and normalizers."""
