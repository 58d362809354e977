"""The Mllama backbone: `mllama.Mllama` is the whole, `vision` and `text` its two halves."""
