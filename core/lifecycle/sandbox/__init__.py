"""The inside of a pod sandbox: its namespaces' pins and files under ``/etc``, its sysctls, bandwidth and init process.

``pods`` makes them one by one, ``containers`` joins them. Knows nothing of containers.
"""
