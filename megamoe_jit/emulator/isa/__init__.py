"""What every PTX instruction means: one table of forms, one semantic function a form, used by both engines."""
