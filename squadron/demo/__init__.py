"""The main job: a supervised dependency audit of the environment it runs in."""
