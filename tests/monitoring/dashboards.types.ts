// What tests/monitoring/dashboards.mjs holds the shipped dashboards against.
import type { Dashboard } from '@grafana/schema/dist/types/raw/dashboard/x/types.gen';
import type { Options as Stat } from '@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/types.gen';
import type { Options as Table } from '@grafana/schema/dist/types/raw/composable/table/panelcfg/x/types.gen';
import type { Options as TimeSeries } from '@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/types.gen';

export interface Shipped {
  dashboard: Dashboard;
  stat: Stat;
  table: Table;
  timeseries: TimeSeries;
}
