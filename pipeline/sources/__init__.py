"""Where images come from: lists, folders, published collections, databases, shards."""
