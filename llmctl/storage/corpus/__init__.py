"""Token shards: made by `shard`, read in an order that is pure arithmetic by `order`, `reader`, `loader`."""
