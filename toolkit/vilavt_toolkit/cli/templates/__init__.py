"""One working component of every kind, as `vilavt new` writes it: `my_part` and `MyPart` become the name given.

Nothing imports these files but the linters, the type checker and the tests: imported, each would register itself.
"""
