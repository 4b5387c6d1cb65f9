"""What happens to pods and containers: ``exit_monitor`` waits for the ends of containers, ``events`` tells the kubelet
(GetContainerEvents), and ``views`` are pods and containers as extensions see them.
"""
