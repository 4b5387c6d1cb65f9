"""From records and values to messages: pure functions, so that what they give for a record may be kept."""
