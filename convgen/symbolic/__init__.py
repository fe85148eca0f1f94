"""What is computed: formulas over indices, their text, their meaning, their gradients."""
