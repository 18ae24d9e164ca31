"""Number formats: codes and values, scale factors, quantising and dequantising. No layouts, no device code."""
