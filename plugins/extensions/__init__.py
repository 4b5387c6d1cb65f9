"""Extensions that come with crinoid, found by their entry points as any other."""
