"""One script per question; each writes a JSON record under results/, which `make tables` prints into the pages."""
