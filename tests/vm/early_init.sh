#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for module in /modules/*; do insmod $module; done
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 host /host
mount -t ext4 -o noatime /dev/vda /disk
mkdir -p /disk/upper /disk/work /disk/lib /disk/tmp /disk/vartmp; chmod 1777 /disk/tmp /disk/vartmp
. /job/settings; below=/host
if [ "$SYSTEMD" ]; then
    mkdir /systemd; mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 systemd /systemd
    below=/systemd:/host
fi
mount -t overlay -o lowerdir=$below,upperdir=/disk/upper,workdir=/disk/work overlay /root
mkdir -p /root/host /root/lib/modules; mount --bind "/host$MODULES" /root/lib/modules
mount --bind /root /before; mount --bind /disk/lib /root/var/lib
mount --bind /disk/tmp /root/tmp; mount --bind /disk/vartmp /root/var/tmp
case $DIRECTORY in /tmp/*|/var/tmp/*|/var/lib/*) hidden=$DIRECTORY ;; *) hidden=/var/lib/dpkg ;; esac
for kept in /var/lib/dpkg "$hidden"; do mkdir -p "/root$kept"; mount --bind "/before$kept" "/root$kept"; done
mount -t tmpfs -o mode=755 tmpfs /root/run
for mounted in proc sys dev host; do mount --move /$mounted /root/$mounted; done
cp -r /job /root/run/vm; cp /bin/busybox /root/run/vm/busybox
if [ "$SYSTEMD" ]; then     # which must see neither a container nor a first boot, where it would start what it finds
    rm -f /root/.dockerenv; echo 11111111111111111111111111111111 >/root/etc/machine-id; echo crinoid-vm >/root/etc/hostname
    mkdir -p /root/run/systemd/system; cp /job/vm.service /root/run/systemd/system/
    exec switch_root -c /dev/console /root /lib/systemd/systemd
fi
exec switch_root -c /dev/console /root /run/vm/busybox sh /run/vm/init
