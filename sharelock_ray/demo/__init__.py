"""DEMO: the demo's rendered shapes and stand-in vision encoder. Needs no download."""
