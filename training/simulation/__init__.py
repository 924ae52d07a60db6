"""The simulated town: made-up streets, ray-cast, with a camera, a LiDAR, weather and exact poses.

``town`` makes a region's geometry from a seed, ``vehicles`` adds the cars of one traverse, ``rays`` shoots rays,
``camera`` and ``lidar`` are the sensors, ``conditions`` the light and weather, ``traverse`` one drive round the loop,
``dataset`` writes many of them as sessions, and ``robot`` drives one live as a ROS 2 node.
"""
