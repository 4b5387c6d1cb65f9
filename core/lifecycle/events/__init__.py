"""What happens to pods and containers, for those who follow it: the kubelet (``events``) and extensions
(``events.views``)."""
