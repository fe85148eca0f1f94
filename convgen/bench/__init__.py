"""Measuring: the machine's peak, kernels against it and against peers. Figures are shares of the
peak of the same run, never bare times."""
