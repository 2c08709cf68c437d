"""The steps of the store drill, by what they try; `storage/drill.py` runs them."""
