"""Components of kind reward: classes that score a rollout, chosen by name in a recipe.

Not `vilavt_toolkit.registry.rewards`, the registry that they are registered in, and not `vilavt_toolkit.rewards`, the
decorator that turns a plain function into one of them.
"""
