"""Every figure and animation of the project, in one style."""
