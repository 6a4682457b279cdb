"""The ops: one file each, read from top to bottom: schema, fake, autograd, autocast, public function."""
