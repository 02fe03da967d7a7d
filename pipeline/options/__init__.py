"""Options of the steps: each spelt once, as a field with its default, bounds and description.

The config's schema and table of keys, the command lines of the steps and the JSON that rules hand over come from these models.
"""
