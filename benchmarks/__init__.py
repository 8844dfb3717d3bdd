"""Commands that compare this project with sentence-transformers and with the machine; README.md says how."""
