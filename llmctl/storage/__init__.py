"""Runs on both sides: the only code that touches bulk bytes in a store. No torch, paramiko, typer or rich."""
