"""What the documentation site is made by, beside its pages: hooks of MkDocs."""
