"""Pod sandboxes, from RunPodSandbox to RemovePodSandbox: ``pods`` answers ``cri``.

``pod_plan`` checks a request and chooses slots, ``pod_limits`` sums limits up, ``pod_restore`` serves RestorePod.
"""
