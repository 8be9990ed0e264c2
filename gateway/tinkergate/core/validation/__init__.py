"""What requests must look like. Every check reads, none changes anything."""
