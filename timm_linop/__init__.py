"""Linear over-parameterisation for pruned timm models."""
