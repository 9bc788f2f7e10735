"""RECIPE: schema, reader and shipped files of recipes, the YAML descriptions of a run. Does no computation."""
