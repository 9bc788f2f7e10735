"""DEMO: what the demo runs on: rendered shapes and the stand-in vision encoder. Needs no download."""
