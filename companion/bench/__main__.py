import sys

from companion.bench.measure import main

sys.exit(main())
