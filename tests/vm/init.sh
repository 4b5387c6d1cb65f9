cd /run/vm; . ./settings
busybox() { /run/vm/busybox "$@"; }
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
if [ $$ = 1 ]; then    # else systemd has done it
    busybox mount --make-rshared /; busybox mkdir -p /dev/pts /dev/shm /dev/mqueue /run/lock
    busybox mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
    busybox mount -t tmpfs -o mode=1777 tmpfs /dev/shm; busybox mount -t mqueue mqueue /dev/mqueue
    for link in fd fd/0:stdin fd/1:stdout fd/2:stderr; do busybox ln -s /proc/self/${link%:*} /dev/${link#*:}; done
    busybox mount -t securityfs securityfs /sys/kernel/security; busybox mount -t bpf bpf /sys/fs/bpf
    busybox mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
    read controllers </sys/fs/cgroup/cgroup.controllers
    for one in $controllers; do echo +$one >/sys/fs/cgroup/cgroup.subtree_control; done
    busybox hostname crinoid-vm; busybox ip link set lo up
fi
modprobe -a loop tun fuse br_netfilter
export VM_OUT=/run/vm/out; busybox mkdir $VM_OUT
[ "$OUT" ] && busybox mount -t 9p -o trans=virtio,version=9p2000.L,cache=mmap,msize=512000 out $VM_OUT
ulimit -n 1048576; ulimit -l unlimited; ulimit -u unlimited
busybox mkfifo output error; busybox cat <output >/dev/vport0p1 & one=$!; busybox cat <error >/dev/vport0p2 & two=$!
busybox setsid /bin/sh /run/vm/command </dev/null >output 2>error &
wait $!; status=$?
for again in 1 2; do for process in /proc/[0-9]*; do            # what still runs holds the pipes open
    case ${process#/proc/} in 1|$$|$one|$two) ;; *) kill -9 ${process#/proc/} 2>/dev/null ;; esac
done; done; wait $one $two
busybox umount $VM_OUT; echo $status >/dev/vport0p3; busybox poweroff -f
