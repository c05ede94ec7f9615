"""Everything that touches SGLang: the hooks table, capture, batch state, sampler, self-check."""
