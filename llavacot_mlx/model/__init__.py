"""The Mllama network: `mllama.Mllama` is the whole, `vision` and `text` are its two halves."""
