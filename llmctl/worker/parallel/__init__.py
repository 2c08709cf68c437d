"""How a model is spread over ranks. Now: whole copies (`replicas`); sharded layouts stand beside it later."""
