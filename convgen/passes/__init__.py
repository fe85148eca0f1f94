"""Passes: from formulas to statements. The one bridge between symbolic/ and ir/."""
